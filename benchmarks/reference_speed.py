"""The float64 reference in chunks beside the one that goes token by token: times, with gradients, and how far apart they are.

    python benchmarks/reference_speed.py [--device cuda:0] [--op gla]... [--B 2 --T 2048 --H 4 --K 128 --V 128] [--rounds 5]

Both compute o, the final state and every gradient of one problem from the same tensors. The median of the rounds counts for the
chunks; token by token is so slow that one round is enough, after a short one that warms up. The difference is the largest
element's, of the result where it is worst, in units of that result's own largest element. Prints a Markdown table; exit code 1
where the chunks are less than 100 times faster, on a GPU, or further away than 1e-12.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from linverify import registry
from linverify.case import Case
from linverify.draw import problem
from linverify.reference.chunkwise import chunkwise
from linverify.reference.stepwise import stepwise

OPERATORS = ("gla", "simple_gla", "delta_rule", "gated_delta_rule", "kda", "rwkv7")
FASTER, APART = 100.0, 1e-12
Results = dict[str, Tensor]


def timed(call: Callable[[], Results], device: torch.device) -> tuple[float, Results]:
    """Seconds, and the results."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = perf_counter()
    found = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start, found


def apart(found: Results, other: Results) -> tuple[float, str]:
    """The largest difference in units of a result's largest element, and that result."""
    return max((float((found[n] - x).abs().max() / x.abs().max()), n) for n, x in other.items())


def compared(case: Case, device: torch.device, rounds: int) -> tuple[float, float, float, str]:
    """Seconds in chunks and step by step, how far apart, and in which result."""
    operator = registry.operator(case.operator)
    posed, short = problem(case, operator), problem(case.with_(T=64), operator)
    stepwise(short, operator, device=device)
    chunkwise(posed, operator, device=device)
    runs = [timed(lambda: chunkwise(posed, operator, device=device), device) for _ in range(rounds)]
    slow, exact = timed(lambda: stepwise(posed, operator, device=device), device)
    return statistics.median(seconds for seconds, _ in runs), slow, *apart(runs[0][1], exact)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each operator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--op", action="append", choices=sorted(registry.operators()))
    for name, size in (("B", 2), ("T", 2048), ("H", 4), ("K", 128), ("V", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=size)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    sizes = {n: getattr(given, n) for n in ("B", "T", "H", "K", "V")}
    print(f"{where}, torch {torch.__version__}; {', '.join(f'{n} = {x}' for n, x in sizes.items())}, float64\n")
    print(
        "| operator | in chunks, ms | step by step, ms | times faster | apart | in |\n| --- | ---: | ---: | ---: | ---: | --- |"
    )
    short = False
    for name in given.op or OPERATORS:
        gated = registry.operator(name).gated
        full = {"state": "normal", "final_state": True, "cotangent": "both", "gate": "production" if gated else "none"}
        case = Case(name, **sizes, dtype="fp32", seed=1, **full)
        fast, slow, distance, result = compared(case, device, given.rounds)
        print(
            f"| {name} | {1e3 * fast:.1f} | {1e3 * slow:.0f} | {slow / fast:.0f} | {distance:.1e} | {result} |",
            flush=True,
        )
        short |= distance > APART or (device.type == "cuda" and slow < FASTER * fast)
    return int(short)


if __name__ == "__main__":
    raise SystemExit(main())
