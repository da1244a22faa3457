"""What judgement costs, in multiples of the chunkwise float64 reference of the same case.

    python benchmarks/judge_cost.py [--T 256] [--operators gla,kda] [--repeat 3]

For each operator and dtype: all results of an emulated kernel judged by the usual rule and by its declared recipe (everything
drawn anew), the waterfall of one case, and one candidate of a fingerprint. The smallest of some repetitions counts.
"""

import argparse
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from linverify import draw, registry
from linverify.attribution import stages
from linverify.case import Case
from linverify.dtype import format_of, round_to
from linverify.ensemble import simulated
from linverify.fingerprinting import Observed, built, residuals
from linverify.judge import Judge

OPERATORS = ("linear_attention", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda")


def fastest(call: Callable[[], object], repeat: int) -> float:
    """Smallest wall time of a call."""
    times = []
    for _ in range(repeat):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return min(times)


def measured(name: str, dtype: str, T: int, repeat: int) -> tuple[float, float, float, float, float, float]:
    """Seconds of the reference, and multiples of it: usual rule, its screened share, declared, waterfall, candidate."""
    operator = registry.operator(name)
    gate = "production" if operator.gated else "none"
    case = Case(
        name, 1, T, 4, 64, 64, dtype=dtype, gate=gate, state="normal", final_state=True, cotangent="both", seed=1
    )
    problem = draw.problem(case, operator)
    judge = Judge(operator, "cpu")
    reference = fastest(lambda: judge.answer(problem), repeat)
    recipe = built("native,C=64", dtype, dtype)
    answer = judge.answer(problem)
    given = {**problem.tensors, "initial_state": problem.initial_state}
    results: dict[str, Tensor] = {}
    for n, value in simulated(answer.question, recipe, ())[0].items():  # type: ignore[arg-type]  # a recurrence
        like = problem.tensors[operator.value_name] if n == "o" else given[n[1:]] if n[0] == "d" else None
        stored = torch.float32 if like is None else like.dtype
        results[n] = round_to(value, format_of(stored)).to(stored)

    def judged(declared: bool) -> None:
        answer.members.clear()
        answer.variances.clear()
        for n, value in results.items():
            judge.score(answer, n, value, dtype, recipe if declared else None)

    usual = fastest(lambda: judged(False), repeat)
    counts = dict(judge.counts)
    sharp = fastest(lambda: judged(True), repeat)
    waterfall = fastest(lambda: stages(operator, answer, recipe), 1)
    candidate = fastest(lambda: residuals(operator, Observed(answer, results), recipe), repeat)
    screened = 1 - counts["realised"] / sum(counts.values())
    return reference, usual / reference, screened, sharp / reference, waterfall / reference, candidate / reference


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--T", type=int, default=256)
    parser.add_argument("--operators", default=",".join(OPERATORS))
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| operator | dtype | reference | usual rule | screened | declared recipe | waterfall | one candidate |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in given.operators.split(","):
        for dtype in ("bf16", "fp32"):
            ms, usual, screened, sharp, waterfall, candidate = measured(name, dtype, given.T, given.repeat)
            cells = f"{1000 * ms:.0f} ms | x{usual:.0f} | {screened:.0%} | x{sharp:.0f} | x{waterfall:.0f} | x{candidate:.1f}"
            print(f"| `{name}` | {dtype} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
