"""The float64 reference in chunks beside the one that goes token by token: times, with gradients, and how far apart they are.

    python benchmarks/reference_speed.py [--device cuda:0] [--op gla]... [--B 2 --T 2048 --H 4 --K 128 --V 128] [--rounds 5]
                                         [--profile 15]

Both compute o, the final state and every gradient of one problem from the same tensors, which lie on the device already; how
long they take to get there from the CPU's memory is a column of its own. The median of the rounds counts for the chunks; token
by token is so slow that one round is enough, after a short one that warms up. The difference is the largest element's, of the
result where it is worst, in units of that result's own largest element. Prints a Markdown table; exit code 1 where the chunks
are less than 100 times faster, on a GPU, or further away than 1e-12.

--profile N prints no table but, of one round in chunks from the CPU's memory, the N kernels and copies that take longest on
the GPU, and the N operations that keep the processor longest (torch.profiler).
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from linverify import registry
from linverify.case import Case
from linverify.draw import problem
from linverify.judge import wait
from linverify.problem import Problem
from linverify.reference.chunkwise import chunkwise
from linverify.reference.stepwise import stepwise

OPERATORS = ("gla", "simple_gla", "delta_rule", "gated_delta_rule", "kda", "rwkv7")
FASTER, APART = 100.0, 1e-12
Results = dict[str, Tensor]


R = TypeVar("R")


def timed(call: Callable[[], R], device: torch.device) -> tuple[float, R]:
    """Seconds, and the results."""
    wait(device)
    start = perf_counter()
    found = call()
    wait(device)
    return perf_counter() - start, found


def there(posed: Problem, device: torch.device) -> Problem:
    """The same problem with its tensors on a device."""
    state = None if posed.initial_state is None else posed.initial_state.to(device)
    tensors, upstream = ({n: x.to(device) for n, x in d.items()} for d in (posed.tensors, posed.cotangents))
    return replace(posed, tensors=tensors, cotangents=upstream, initial_state=state)


def apart(found: Results, other: Results) -> tuple[float, str]:
    """The largest difference in units of a result's largest element, and that result."""
    return max((float((found[n] - x).abs().max() / x.abs().max()), n) for n, x in other.items())


def compared(case: Case, device: torch.device, rounds: int) -> tuple[float, float, float, float, str]:
    """Seconds in chunks, step by step and to get the tensors there; how far apart, and in which result."""
    operator = registry.operator(case.operator)
    posed, short = problem(case, operator), problem(case.with_(T=64), operator)
    stepwise(short, operator, device=device)
    chunkwise(posed, operator, device=device)
    moves = [timed(lambda: there(posed, device), device) for _ in range(rounds)]
    placed = moves[0][1]
    runs = [timed(lambda: chunkwise(placed, operator, device=device), device) for _ in range(rounds)]
    slow, exact = timed(lambda: stepwise(placed, operator, device=device), device)
    median = [statistics.median(seconds for seconds, _ in found) for found in (runs, moves)]
    return median[0], slow, median[1], *apart(runs[0][1], exact)


def profiled(case: Case, device: torch.device, rows: int) -> None:
    """Print what one round in chunks spends its time on."""
    operator = registry.operator(case.operator)
    posed = problem(case, operator)
    for _ in range(2):
        chunkwise(posed, operator, device=device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        whole, _ = timed(lambda: chunkwise(posed, operator, device=device), device)
    events = found.key_averages()
    on_gpu = [(e.self_device_time_total, e.count, e.key) for e in events if e.device_type == DeviceType.CUDA]
    on_cpu = [(e.self_cpu_time_total, e.count, e.key) for e in events if e.device_type == DeviceType.CPU]
    print(f"\n{case.operator}: {1e3 * whole:.1f} ms under the profiler")
    for where, spent in (("GPU", on_gpu), ("processor", on_cpu)):
        number = sum(count for _, count, _ in spent)
        print(f"  {where}: {sum(us for us, _, _ in spent) / 1e3:.2f} ms in {number} calls")
        for us, count, name in sorted(spent, reverse=True)[:rows]:
            print(f"    {us:8.0f} us  x{count:<4d} {name[:110]}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each operator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--op", action="append", choices=sorted(registry.operators()))
    for name, size in (("B", 2), ("T", 2048), ("H", 4), ("K", 128), ("V", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--profile", type=int, default=0, metavar="N")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    sizes = {n: getattr(given, n) for n in ("B", "T", "H", "K", "V")}
    print(f"{where}, torch {torch.__version__}; {', '.join(f'{n} = {x}' for n, x in sizes.items())}, float64\n")
    if not given.profile:
        print(
            "| operator | in chunks, ms | step by step, ms | times faster | apart | in | to get there, ms |\n"
            "| --- | ---: | ---: | ---: | ---: | --- | ---: |"
        )
    short = False
    for name in given.op or OPERATORS:
        gated = registry.operator(name).gated
        full = {"state": "normal", "final_state": True, "cotangent": "both", "gate": "production" if gated else "none"}
        case = Case(name, **sizes, dtype="fp32", seed=1, **full)
        if given.profile:
            profiled(case, device, given.profile)
            continue
        fast, slow, moved, distance, result = compared(case, device, given.rounds)
        row = (f"{1e3 * fast:.1f}", f"{1e3 * slow:.0f}", f"{slow / fast:.0f}", f"{distance:.1e}", result)
        print("|", " | ".join((name, *row, f"{1e3 * moved:.1f}")), "|", flush=True)
        short |= distance > APART or (device.type == "cuda" and slow < FASTER * fast)
    return int(short)


if __name__ == "__main__":
    raise SystemExit(main())
