"""Compare: two targets are asked the same cases, and their errors are set side by side.

The laws are agreement and, where both offer gradients, gradients: these hold every result to the reference. The cases are those
that `linverify check` would draw for what both targets offer.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter

import torch

from linverify import registry
from linverify.bench import Bench
from linverify.binding import Binding, bind
from linverify.case import Case
from linverify.claims import claimed
from linverify.comparison import Comparison, Measurement, Side, overall, regions, rows
from linverify.declared import declared
from linverify.errors import CannotCheckError, EmptyCaseSpace, UsageError
from linverify.explore import draw
from linverify.inquiry import Outcome, evaluate
from linverify.operator import Operator
from linverify.parameters import with_parameters
from linverify.plan import Plan
from linverify.profile import profile
from linverify.property import Property
from linverify.session import INTERPRETED_DTYPES, asked, one_thread, open_runner
from linverify.share import as_claimed
from linverify.shared import Shared
from linverify.strategies import strata
from linverify.target import parse
from linverify.verdict import Failure, Status

LAWS = ("agreement", "gradients")
_SIZES = (16, 64, 256, 1024)
_JUDGED = (Status.PASS, Status.MARGINAL, Status.VIOLATION)
# An error without a number (a crash, a wrong shape) is worse than any other.
_NO_NUMBER = math.inf

Heard = Callable[[str, int, int], None]


@dataclass(eq=False)
class _Contestant:
    """One of the two, as it is asked."""

    plan: Plan
    binding: Binding
    bench: Bench
    backend: str
    triton: bool
    failures: list[tuple[str, Failure]] = field(default_factory=list)
    refused: int = 0
    judged: int = 0
    worst: float | None = None

    def ask(self, law: Property, case: Case) -> Outcome:
        """Judge a case and remember what it says of this target."""
        outcome = evaluate(self.bench, law, case)
        self.refused += outcome.status is Status.REFUSED
        self.judged += outcome.status in _JUDGED
        self.worst = max((s for s in (self.worst, outcome.share) if s is not None), default=None)
        if outcome.status is Status.VIOLATION and outcome.failure is not None:
            self.failures.append((case.id, outcome.failure))
        return outcome

    def side(self, reason: str) -> Side:
        """Return the record."""
        worst = max(self.failures, key=lambda f: f[1].evidence.share, default=None)
        verdict = "violation" if self.failures else "unchecked" if reason else "pass"
        return Side(
            self.plan.target,
            verdict,
            reason if verdict == "unchecked" else "",
            self.worst,
            len({case_id for case_id, _ in self.failures}),
            self.refused,
            worst[0] if worst else "",
            worst[1].diagnosis if worst else "",
        )


def compare(plans: tuple[Plan, Plan], heard: Heard) -> Comparison:
    """Ask both targets the same cases.

    Args:
        plans: alike but for the target.
        heard: told of every case: its id, its number, how many there are.

    Raises:
        UsageError: a target names no function or several, no operator, or another one than the other target.
        CannotCheckError: a target cannot be imported, the device is not there, or there is no case that both could be asked.
    """
    shared = Shared()
    with one_thread(), ExitStack() as stack:
        first, second = (_contestant(plan, stack, shared) for plan in plans)
        operator = first.bench.operator
        if operator.name != second.bench.operator.name:
            raise UsageError(
                f"{plans[0].target} computes {operator.name}, {plans[1].target} {second.bench.operator.name}; "
                "two kernels of one operator can be compared"
            )
        questions, notes = _questions(first, second, operator)
        return _compared(first, second, questions, notes, heard)


def _contestant(plan: Plan, stack: ExitStack, shared: Shared) -> _Contestant:
    runner = stack.enter_context(open_runner(plan, parse(plan.target)))
    found = asked(plan, runner)
    if len(found) != 1:
        names = ", ".join(f.name for f, _ in found)
        raise UsageError(
            f"{plan.target} holds {len(found)} kernels ({names}); name one: {plan.target}::{found[0][0].name}"
        )
    ((function, claim),) = found
    claims = claimed(claim.claims, plan.claims)
    stated = with_parameters(registry.operator(claim.operator), plan.operator_parameters)
    operator = as_claimed(stated, claims)
    binding = bind(operator, function, settings={**claim.settings, **plan.settings}, claims=claims)
    runner.bind(binding, operator)
    judge, answers = shared.of(operator, plan.device, plan.operator_parameters)
    bench = Bench(runner, operator, judge, plan.device, claims, answers)
    bench.compiles = plan.device.startswith("cuda")
    bench.declaration = declared(claims.get("recipe"))
    triton = function.uses_triton or claim.backend == "triton"
    return _Contestant(plan, binding, bench, "triton" if triton else claim.backend, triton)


def _questions(a: _Contestant, b: _Contestant, operator: Operator) -> tuple[list[tuple[Property, Case]], list[str]]:
    """Return what both can be asked, and what cannot be asked of both."""
    plan, notes = a.plan, [*a.binding.notes, *b.binding.notes]
    on_cpu = not plan.device.startswith("cuda")
    dtypes = tuple(d for d in plan.dtypes if not (on_cpu and (a.triton or b.triton)) or d in INTERPRETED_DTYPES)
    if dtypes != plan.dtypes:
        notes.append("bf16 is left out: on a CPU Triton's interpreter multiplies bfloat16 wrongly; compare on a GPU")
    claims = {k: v for k, v in a.bench.claims.items() if b.bench.claims.get(k) == v}
    interpreted = next((c.backend for c in (a, b) if c.triton), a.backend)
    found: dict[str, tuple[Property, Case]] = {}
    for law in (registry.property_named(n) for n in LAWS):
        both = a.binding.capabilities & b.binding.capabilities
        if law.needs - both:
            notes.append(f"{law.name} are not compared: one of the two does not offer them")
            continue
        try:
            drawn = strata(
                operator,
                both,
                law.space,
                profile=profile(plan.profile),
                device=plan.device,
                dtypes=dtypes,
                claims=claims,
                backend=interpreted,
                weight=law.weight,
            )
        except EmptyCaseSpace as reason:
            notes.append(f"{law.name} are not compared: {reason}")
            continue
        for stratum in drawn:
            seed = zlib.crc32(f"{plan.seed}/{stratum.label}".encode())
            found |= {case.id: (law, case) for case in draw(stratum.strategy, stratum.cases, seed)}
    lacking = sorted(
        (a.binding.capabilities | b.binding.capabilities) - (a.binding.capabilities & b.binding.capabilities)
    )
    if lacking:
        notes.append(f"only one of the two takes {', '.join(w.replace('_', ' ') for w in lacking)}: not asked")
    if not found:
        raise CannotCheckError(f"there is no case that both could be asked: {'; '.join(notes) or 'no dtype is left'}")
    return list(found.values()), notes


def _compared(
    a: _Contestant, b: _Contestant, questions: Sequence[tuple[Property, Case]], notes: list[str], heard: Heard
) -> Comparison:
    measured: list[Measurement] = []
    start, both, left_out = perf_counter(), 0, ""
    for number, (law, case) in enumerate(questions, 1):
        if a.plan.time is not None and perf_counter() - start > a.plan.time:
            notes.append(f"time ran out after {number - 1} of {len(questions)} cases")
            break
        heard(case.id, number, len(questions))
        outcomes = (a.ask(law, case), b.ask(law, case))
        if all(o.status in _JUDGED for o in outcomes):
            both += 1
            measured += _measured(case, outcomes)
        else:
            left_out = next(o.reason for o in outcomes if o.status not in _JUDGED) or left_out
    if both < a.judged or both < b.judged:
        notes.append(f"cases that one of the two did not answer are left out: {left_out}")
    nothing = "" if both else f"no case was answered by both{': ' + left_out if left_out else ''}"
    classes = [{case.dtype: c.bench.precision(case) for _, case in questions} for c in (a, b)]
    if classes[0] != classes[1]:
        notes.append(f"the two claim different arithmetic: A is judged as {classes[0]}, B as {classes[1]}")
    return Comparison(
        a.bench.operator.name,
        (a.side(nothing), b.side(nothing)),
        both,
        overall(measured),
        rows(measured),
        regions(measured),
        tuple(dict.fromkeys(notes)),
    )


def _measured(case: Case, outcomes: tuple[Outcome, Outcome]) -> list[Measurement]:
    errors = [_errors(o) for o in outcomes]
    shares = [o.trial.shares if o.trial is not None else {} for o in outcomes]
    names = dict.fromkeys([*errors[0], *errors[1]])
    return [
        Measurement(
            case.id,
            _facets(case),
            name,
            case.dtype,
            (errors[0].get(name, _NO_NUMBER), errors[1].get(name, _NO_NUMBER)),
            (shares[0].get(name, _NO_NUMBER), shares[1].get(name, _NO_NUMBER)),
        )
        for name in names
    ]


def _errors(outcome: Outcome) -> Mapping[str, float]:
    """Root mean square error of every result; {} where nothing usable came back."""
    trial = outcome.trial
    if trial is None or trial.asked.result is None:
        return {}
    reference = trial.reference(trial.problem)
    found = {}
    for name, value in trial.asked.result.named().items():
        if name in reference and reference[name].shape == value.shape:
            error = (value.cpu().double() - reference[name]).square().mean().sqrt()
            found[name] = float(error) if bool(torch.isfinite(error)) else math.inf
    return found


def _facets(case: Case) -> tuple[tuple[str, str], ...]:
    """The regions that a case lies in."""
    low = max((s for s in _SIZES if s < case.T), default=0) + 1
    high = next((s for s in _SIZES if s >= case.T), None)
    length = f"{low}-{high}" if high else f"from {low}"
    packed = (("sequences", "packed"),) if case.lengths else ()
    return (
        ("regime", case.regime),
        ("gate", case.gate),
        ("state", case.state),
        ("T", length),
        ("K x V", f"{case.K} x {case.V}"),
        *packed,
    )
