"""Error against T of the output and the final state, to 256k tokens: slopes with their intervals, and how far a state is safe.

    python benchmarks/growth.py [--device cuda:0] [--tokens 262144] [--dtypes bf16,fp32] [--seconds 15]
    python benchmarks/growth.py --target FILE.py::function --op OP [--recipe RECIPE] ...

Without a target: flash-linear-attention's chunk_gla and fused_recurrent_gla on a GPU, the built-in chunkwise and recurrent
forms on a CPU. Nothing decays; B = 1, H = 2, K = V = 64. Each target and dtype has `seconds` for its ladder of lengths, which
ends where the next one would take longer. A row is printed for each length as it comes.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from long_sequence import Silent

from linverify.case import Case
from linverify.draw import problem
from linverify.fingerprinting import built
from linverify.growth import FEWEST, Rung, far_rung, growth
from linverify.operator import Operator
from linverify.plan import Plan
from linverify.problem import Call, Problem, Program
from linverify.recipe import precision_class
from linverify.runner import Runner
from linverify.segments import segmentable
from linverify.session import Shared, examinations, one_thread, open_runner
from linverify.target import parse

# Tokens up to which a recipe that goes step by step is simulated: beyond, its law is taken from the shorter ones.
STEPS = 2**15
SHORTEST = 2**9


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, and the recipe as its source says."""

    target: str
    operator: str
    recipe: str


SUBJECTS = {
    "cuda": (
        Subject("fla.ops.gla:chunk_gla", "gla", "native,C=64,backward=separate,blocks=tf32,backward_scores=fp32"),
        Subject("fla.ops.gla:fused_recurrent_gla", "gla", "fp32,recurrent"),
    ),
    "cpu": (
        Subject("linverify.impls.torch_chunkwise:gla", "gla", "fp32,C=64"),
        Subject("linverify.impls.torch_recurrent:gla", "gla", "fp32,recurrent"),
    ),
}


class Ladder:
    """Lengths, and the problems of each, which targets of one operator share."""

    def __init__(self, tokens: int) -> None:
        self.lengths = [n for n in (2**i for i in range(31)) if SHORTEST <= n <= tokens]
        self._drawn: dict[str, Problem] = {}

    def problem(self, operator: Operator, dtype: str, T: int) -> Problem:
        """A sequence without decay, drawn once."""
        case = Case(operator.name, 1, T, 2, 64, 64, dtype=dtype, gate="none", state="normal", final_state=True, seed=1)
        if case.id not in self._drawn:
            self._drawn[case.id] = problem(case, operator)
        return self._drawn[case.id]


def climbed(
    ladder: Ladder, subject: Subject, operator: Operator, runner: Runner, device: str, dtype: str, seconds: float
) -> Iterator[tuple[Rung, float]]:
    """Rungs with the seconds that each took, until the next one would take too long."""
    recipe = built(subject.recipe, dtype, precision_class(dtype, device, {}))
    end, last = perf_counter() + seconds, 0.0
    for T in ladder.lengths:
        start = perf_counter()
        if start + 2 * last > end:
            return
        posed = ladder.problem(operator, dtype, T)
        (result,) = runner.run(Program((Call(posed),)), time_limit=120)
        told = recipe if recipe.chunk or T <= STEPS else None
        yield far_rung(operator, posed, result.named(), told, device), perf_counter() - start
        last = perf_counter() - start


def measure(ladder: Ladder, subject: Subject, device: str, dtypes: Sequence[str], seconds: float) -> None:
    """Print every rung of a target, and its laws."""
    plan = Plan(subject.target, operator=subject.operator, device=device)
    with one_thread(), open_runner(plan, parse(subject.target)) as runner:
        examination = next(examinations(plan, runner, Silent(), Shared()))  # type: ignore[arg-type]  # hears everything
        operator = examination.operator
        if why := segmentable(operator):
            print(f"{subject.target}: {why}")
            return
        for dtype in dtypes:
            rungs = []
            for rung, took in climbed(ladder, subject, operator, runner, device, dtype, seconds):
                rungs.append(rung)
                cells = [
                    f"{n} {rung.target[n]:.3e} (recipe {f'{rung.recipe[n]:.3e}' if n in rung.recipe else 'not run'})"
                    for n in rung.target
                ]
                print(f"{subject.target} {dtype} T={rung.T}: {', '.join(cells)}; {took:.1f} s", flush=True)
            laws = [growth(rungs, n, dtype) for n in ("o", "state")]
            if len(rungs) < FEWEST or not any(laws):
                print(f"{subject.target} {dtype}: no law from {len(rungs)} lengths", flush=True)
            for law in laws:
                if law is not None:
                    interval = (
                        f"slope {law.slope:+.3f} in [{law.low:+.3f}, {law.high:+.3f}], recipe {law.predicted:+.3f}"
                    )
                    safe = "" if law.safe_up_to is not None else f"; no drift seen up to T = {law.lengths[-1]}"
                    print(f"{subject.target}: {law.sentence}; {interval}{safe}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the targets one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--target")
    parser.add_argument("--op", default="gla")
    parser.add_argument("--recipe", default="native,C=64")
    given = parser.parse_args(arguments)
    kind = torch.device(given.device).type
    ladder = Ladder(given.tokens or {"cpu": 2**14}.get(kind, 2**18))
    subjects = (Subject(given.target, given.op, given.recipe),) if given.target else SUBJECTS[kind]
    for subject in subjects:
        measure(ladder, subject, given.device, given.dtypes.split(","), given.seconds)


if __name__ == "__main__":
    main()
