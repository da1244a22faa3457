"""Call sequences: whatever was asked before, in whatever order, an answer is right.

Hypothesis drives a state machine whose steps are calls of one process: other values, shapes, dtypes and layouts, another
stream, another device, a busy one. A sequence that ends in a wrong answer is shrunk to the calls that it takes.
"""

from collections.abc import Mapping

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from linverify.problem import Call, Fault, Program, Refused
from linverify.properties._problems import (
    forward_only,
    head_groups,
    heads,
    in_other_dtype,
    length_of,
    mirrored,
    negated,
    rows,
    span,
    taken,
)
from linverify.properties._results import choose
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial
from linverify.verdict import Evidence

SEQUENCES = 2
STEPS = 6
ELSEWHERE = "another device"
# Calls of a step by its name, and whether their answers can be judged.
Steps = Mapping[str, tuple[Program, bool]]


def check(trial: Trial) -> None:
    """Run drawn sequences of calls, each in a process that has run nothing, and judge every answer."""
    fresh = trial.fresh()
    settings = hypothesis.settings(
        max_examples=SEQUENCES if fresh else 1,
        stateful_step_count=STEPS,
        phases=(Phase.generate, Phase.shrink) if fresh else (Phase.generate,),
        database=None,
        derandomize=False,  # seeded below; a profile that derandomizes would draw the same sequences for every case
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    history: list[str] = []
    steps = _steps(trial)

    def machine() -> _Calls:
        return _Calls(trial, steps, history)

    hypothesis.seed(choose(trial, "sequences", 0, 2**31))(machine)
    try:
        run_state_machine_as_test(machine, settings=settings)
        _everything(trial, steps, history, fresh)
    except Exception as error:
        found = getattr(error, "evidence", None)
        if isinstance(found, Evidence) and history:
            trial.require(
                False,
                found.kind,
                f"wrong after these calls: {', '.join(history)}: {found.message or error}",
                found.result,
            )
        raise


def _everything(trial: Trial, steps: Steps, history: list[str], fresh: bool) -> None:
    """Make every call there is, and then the case again; where a process is cheap, in the opposite order, too.

    Few drawn sequences leave some pairs out. So each call comes after each other one.

    Raises:
        Refused: all are that could be judged; then nothing was, and the law must not pass.
    """
    names = list(steps)
    refusals = []
    for order in ([*names, names[0]], names[::-1])[: 1 + fresh]:
        history.clear()
        trial.fresh()
        for name in order:
            history.append(name)
            refusal = _take(trial, *steps[name])
            refusals += [refusal] if steps[name][1] else []
    if all(refusals):
        raise next(r for r in refusals if r)


class _Calls(RuleBasedStateMachine):
    """One process, from its first call on.

    There is one such class for all cases: Hypothesis keeps every class of this kind, and all that it refers to.
    """

    def __init__(self, trial: Trial, steps: Steps, history: list[str]) -> None:
        super().__init__()
        self.trial, self.steps, self.history = trial, steps, history
        history.clear()
        trial.fresh()

    @rule(name=st.runner().flatmap(lambda machine: st.sampled_from(list(machine.steps))))
    def call(self, name: str) -> None:
        """Make the calls of a step, and judge those that have a reference."""
        self.history.append(name)
        _take(self.trial, *self.steps[name])


def _take(trial: Trial, program: Program, judged: bool) -> Refused | None:
    """Make the calls of a step and judge them where that can be done; a refusal is a limitation, which agreement lists."""
    try:
        results = trial.run(program)
    except Refused as refusal:
        return refusal
    except Fault as fault:
        if program.calls[0].amid == ELSEWHERE and trial.fresh():
            # on a CPU: a function may read memory that such tensors do not have; it is a new process now
            return Refused("Fault", str(fault))
        raise
    for made, result in zip(program.calls, results, strict=True):
        if judged:
            trial.agree(result, made.problem)
    return None


def _steps(trial: Trial) -> Steps:
    """What may be asked, and whether the answer can be judged by this case's budget; from the simplest on."""
    problem, operator = trial.problem, trial.operator
    length, batch = length_of(problem, operator, "T"), length_of(problem, operator, "B")
    groups = len(head_groups(problem, operator))
    other = mirrored(problem, operator)
    asked = {
        "the case": problem,
        "other values": other,
        "opposite values": negated(problem, operator),
        "no gradients": forward_only(problem),
        "fewer tokens": span(problem, operator, 0, (length + 1) // 2),
        "one token": span(problem, operator, length - 1, length),
        "one row": taken(problem, operator, rows([batch - 1])),
        "one head": taken(problem, operator, heads(problem, operator, [groups - 1])),
    }
    return {
        **{name: (Program((Call(p),)), True) for name, p in asked.items()},
        "strided inputs": (Program((Call(problem, layout="strided"),)), True),
        "two calls in the same tensors": (Program((Call(other), Call(problem)), in_place=True), True),
        # What it says is judged where that dtype is the case's own.
        "another dtype": (Program((Call(in_other_dtype(problem)),)), False),
        "another stream": (Program((Call(problem, amid="another stream"),)), True),
        "a busy device": (Program((Call(problem, amid="load"),)), True),
        # On a CPU it is one whose tensors hold no numbers.
        ELSEWHERE: (Program((Call(problem, amid="another device"),)), False),
    }


PROPERTY = Property(
    name="call_sequences",
    law="Results are right after any sequence of calls: other values, shapes, dtypes, layouts, streams, devices, busy or not.",
    check=check,
    space=Space(min_T=17, max_T=SHORT, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="Compiled variants, masks and workspaces are kept under keys that leave something out; which calls must follow each "
    "other to show it is nobody's guess.",
    against="something left over from an earlier call",
)
