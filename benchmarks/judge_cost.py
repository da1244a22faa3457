"""What judgement costs, in multiples of the chunkwise float64 reference of the same case.

    python benchmarks/judge_cost.py [--device cuda] [--T 256] [--operators gla,kda] [--dtypes bf16,fp32] [--repeat 3]

For each operator and dtype: all results of an emulated kernel judged by the usual rule; those alone that the analytic screen
settles; all by realisations alone, as where it settles nothing; all by the declared recipe; the waterfall of one case, and one
candidate of a fingerprint. Everything is drawn anew. The smallest of some repetitions counts: of time on a GPU, of processor
time (one thread) on a CPU, where other work takes turns.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter, process_time

import torch
from torch import Tensor

from linverify import draw, registry
from linverify.attribution import stages
from linverify.case import Case
from linverify.dtype import format_of, round_to
from linverify.ensemble import simulated
from linverify.fingerprinting import Observed, built, residuals
from linverify.judge import Judge
from linverify.recipe import Recipe, precision_class
from linverify.score import Answer

OPERATORS = ("linear_attention", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda", "rwkv7")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of the reference, and multiples of it.

    Attributes:
        reference: seconds.
        usual: all results by the usual rule.
        settled: share of the results that need no realisations.
        screen: judging those alone.
        generic: all results by realisations.
        declared: all results by the declared recipe.
        waterfall: shares of one case.
        candidate: one recipe of a fingerprint.
    """

    reference: float
    usual: float
    settled: float
    screen: float
    generic: float
    declared: float
    waterfall: float
    candidate: float

    @property
    def row(self) -> str:
        """Cells of the table."""
        screen = f"x{self.screen:.1f}" if self.settled else "-"
        parts = [f"x{x:.1f}" for x in (self.generic, self.declared, self.waterfall, self.candidate)]
        return " | ".join(
            [f"{1000 * self.reference:.1f} ms", f"x{self.usual:.1f}", f"{self.settled:.0%}", screen, *parts]
        )


class Clock:
    """Measures calls on a device."""

    def __init__(self, device: str, repeat: int) -> None:
        self.gpu, self.repeat = device.startswith("cuda"), repeat
        self.now = perf_counter if self.gpu else process_time

    def fastest(self, call: Callable[[], object], repeat: int = 0) -> float:
        """Smallest time of a call, in seconds; the first call is not counted."""
        times = []
        for _ in range((repeat or self.repeat) + 1):
            self._wait()
            start = self.now()
            call()
            self._wait()
            times.append(self.now() - start)
        return min(times[1:])

    def _wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


def kernel_results(answer: Answer, recipe: Recipe) -> dict[str, Tensor]:
    """What an emulated kernel of that recipe returns, in the dtypes it should."""
    problem, operator = answer.problem, answer.question.operator
    given = {**problem.tensors, "initial_state": problem.initial_state}
    results: dict[str, Tensor] = {}
    for n, value in simulated(answer.recurrence, recipe, ())[0].items():
        like = problem.tensors[operator.value_name] if n == "o" else given[n[1:]] if n[0] == "d" else None
        stored = torch.float32 if like is None else like.dtype
        results[n] = round_to(value, format_of(stored)).to(stored)
    return results


def measured(name: str, dtype: str, T: int, device: str, clock: Clock) -> Cost:
    """What judging one case of an operator costs."""
    operator = registry.operator(name)
    gate = "production" if operator.gated else "none"
    case = Case(
        name, 1, T, 4, 64, 64, dtype=dtype, gate=gate, state="normal", final_state=True, cotangent="both", seed=1
    )
    problem, precision = draw.problem(case, operator), precision_class(dtype, device, {})
    judge = Judge(operator, device)
    reference = clock.fastest(lambda: judge.answer(problem))
    recipe = built("native,C=64", dtype, precision)
    answer = judge.answer(problem)
    results = kernel_results(answer, recipe)

    def judged(names: Iterable[str], declared: Recipe | None = None) -> list[bool]:
        answer.members.clear()
        answer.ungated.clear()
        answer.variances.clear()
        values = {n: results[n] for n in names}
        return [s.screened for _, s in judge.scores(answer, values, precision, declared)]

    def realised() -> None:
        answer.members.clear()
        answer.ungated.clear()
        answer.variances.clear()
        answer.variances[precision], answer.rounded[precision] = (
            {},
            frozenset(),
        )  # as where the analytic form knows nothing
        list(judge.scores(answer, results, precision))

    screened = [n for n, cheap in zip(results, judged(results), strict=True) if cheap]
    return Cost(
        reference,
        clock.fastest(lambda: judged(results)) / reference,
        len(screened) / len(results),
        clock.fastest(lambda: judged(screened)) / reference,
        clock.fastest(realised) / reference,
        clock.fastest(lambda: judged(results, recipe)) / reference,
        clock.fastest(lambda: stages(operator, answer, recipe), 1) / reference,
        clock.fastest(lambda: residuals(operator, Observed(answer, results), recipe)) / reference,
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--T", type=int, default=256)
    parser.add_argument("--operators", default=",".join(OPERATORS))
    parser.add_argument("--dtypes", default="bf16,fp32")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock(given.device, given.repeat)
    heads = (
        "operator",
        "dtype",
        "reference",
        "usual rule",
        "settled",
        "screen",
        "generic",
        "declared",
        "waterfall",
        "candidate",
    )
    print("| " + " | ".join(heads) + " |")
    print("| " + " | ".join("---" for _ in heads) + " |")
    for name in given.operators.split(","):
        for dtype in given.dtypes.split(","):
            cost = measured(name, dtype, given.T, given.device, clock)
            print(f"| `{name}` | {dtype} | {cost.row} |", flush=True)


if __name__ == "__main__":
    main()
