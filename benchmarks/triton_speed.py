"""How fast the built-in Triton kernels are beside flash-linear-attention's for the same operator, on a GPU.

    python benchmarks/triton_speed.py [--op gla ...] [--dtype bf16] [--B 2 --T 4096 --H 8 --K 128 --V 128]
                                      [--configurations 3] [--compilers 0] [--seconds 95] [--rounds 30] [--kernels] [--json F]

Forward (of inputs that require gradients) and backward are timed by CUDA events, both libraries in turn round by round, so that
a ratio is of one run; medians count. Ours has one configuration. Theirs tunes itself, among `--configurations N` of those that
it offers, evenly spread (0 for all, as for its users; that can take minutes a kernel). `--compilers W` has W processes compile
both sides' kernels first; what they have not done after half of `--seconds` is compiled when its turn comes. A share of 0.5
means that ours takes twice their time. Rows are printed as they come, and a Markdown table at the end.
"""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from linverify import autotune, draw, registry
from linverify.binding import bind
from linverify.case import Case
from linverify.describe import load

CHUNKWISE, DELTA = "linverify.impls.triton_chunkwise", "linverify.impls.triton_delta"
# Operator: our module, their module and function. What fla refuses to do backward on Hopper is called through our wrapper that
# lifts the refusal: the same kernels.
PAIRS = {
    "linear_attention": (CHUNKWISE, "fla.ops.linear_attn", "chunk_linear_attn"),
    "retention": (CHUNKWISE, "fla.ops.retention", "chunk_retention"),
    "lightning_attention": (CHUNKWISE, "fla.ops.lightning_attn", "chunk_lightning_attn"),
    "simple_gla": (CHUNKWISE, "fla_guard_lifted", "chunk_simple_gla"),
    "gla": (CHUNKWISE, "fla.ops.gla", "chunk_gla"),
    "delta_rule": (DELTA, "fla.ops.delta_rule", "chunk_delta_rule"),
    "gated_delta_rule": (DELTA, "fla_guard_lifted", "chunk_gated_delta_rule"),
    "kda": (DELTA, "fla.ops.kda", "chunk_kda"),
}
STEPS = ("forward", "backward")


@dataclass(frozen=True, slots=True)
class Row:
    """Medians in milliseconds, by step, and their share: theirs / ours."""

    operator: str
    ours: dict[str, float]
    theirs: dict[str, float]
    share: dict[str, float]


Step = Callable[[], Tensor]


def step(module: str, function: str, case: Case) -> tuple[Step, Callable[[Tensor], Any]]:
    """A call of a function on the case's tensors on the GPU, and what propagates back through its o."""
    operator = registry.operator(case.operator)
    functions, description = load("module", module, function)
    binding = bind(operator, description.functions[0])
    problem = draw.problem(case, operator)
    leaves = {n: x.cuda().requires_grad_() for n, x in problem.tensors.items()}
    keywords = {binding.names[n]: x for n, x in leaves.items()} | dict(binding.settings)
    do = problem.cotangents["o"].cuda()
    return (
        lambda: functions[function](**keywords)[0],
        lambda o: torch.autograd.grad(o, list(leaves.values()), do.to(o.dtype), retain_graph=True),
    )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds on the GPU, and the result."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop), result


def compared(case: Case, rounds: int, kernels: bool) -> Row:
    """Time both libraries in turn; what fails on their side leaves ours alone."""
    ours, *theirs = PAIRS[case.operator]
    sides = [step(ours, case.operator, case)]
    warm(*sides[0])
    try:
        sides.append(step(*theirs, case))
        warm(*sides[1])
    except Exception as error:
        del sides[1:]
        print(f"{theirs[1]}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)
    times: list[dict[str, list[float]]] = [{n: [] for n in STEPS} for _ in sides]
    for _ in range(rounds):
        for (forward, backward), taken in zip(sides, times, strict=True):
            seconds, o = timed(forward)
            taken["forward"].append(seconds)
            taken["backward"].append(timed(lambda backward=backward, o=o: backward(o))[0])
    if kernels:
        for forward, backward in sides:
            by_kernel(forward, backward)
    found = [{n: median(t[n]) for n in STEPS} for t in times]
    other = found[1] if len(found) > 1 else dict.fromkeys(STEPS, float("nan"))
    return Row(case.operator, found[0], other, {n: other[n] / found[0][n] for n in STEPS})


def warm(forward: Step, backward: Callable[[Tensor], Any]) -> None:
    """Compile, and tune what tunes itself."""
    for _ in range(3):
        backward(forward())
    torch.cuda.synchronize()


def by_kernel(forward: Step, backward: Callable[[Tensor], Any], calls: int = 5) -> None:
    """Print what each GPU kernel takes of a forward and backward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            backward(forward())
        torch.cuda.synchronize()
    taken = sorted(
        ((e.device_time_total / calls, e.count // calls, e.key) for e in profile.key_averages()), reverse=True
    )
    print("   " + "  ".join(f"{key[:40]} x{n} {micros:.0f}us" for micros, n, key in taken[:14] if micros), flush=True)


def limit(configurations: int) -> None:
    """Leave every autotuned kernel that is built from now on at most so many configurations; 0 leaves all."""
    if not configurations:
        return
    tuner: Any = importlib.import_module("triton.runtime.autotuner").Autotuner
    right = tuner.__init__

    def fewer(self: Any, *args: Any, **kwargs: Any) -> None:
        right(self, *args, **kwargs)
        self.configs = self.configs[:: -(-len(self.configs) // configurations)]

    tuner.__init__ = fewer


def words(case: Case, configurations: int) -> list[str]:
    """The command that compiles for a case, but for what it compiles."""
    sizes = [w for n in ("B", "T", "H", "K", "V", "dtype") for w in (f"--{n}", str(getattr(case, n)))]
    return [sys.executable, __file__, "--op", case.operator, *sizes, "--configurations", str(configurations)]


def compile_first(cases: Sequence[Case], configurations: int, workers: int, seconds: float) -> None:
    """Have processes of our own fill Triton's cache: one for each of our functions, one for each of their configurations."""
    numbers = range(-1, configurations or 64)
    left = [[*words(case, configurations), "--compile-only", str(number)] for number in numbers for case in cases]
    running: list[subprocess.Popen[bytes]] = []
    start = time.perf_counter()
    while (left or running) and time.perf_counter() - start < seconds:
        running = [p for p in running if p.poll() is None]
        while left and len(running) < workers:
            running.append(subprocess.Popen(left.pop(0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(0.2)
    for process in running:
        process.kill()
    print(
        f"compiled in {time.perf_counter() - start:.0f} s; {len(left) + len(running)} processes not through", flush=True
    )


def compile_one(case: Case, number: int) -> None:
    """Compile ours (-1), or theirs with every kernel at this place of its list."""
    if number >= 0:
        autotune.install("pin")
        autotune.force(number)
    forward, backward = (
        step(PAIRS[case.operator][0], case.operator, case) if number < 0 else step(*PAIRS[case.operator][1:], case)
    )
    backward(forward())
    torch.cuda.synchronize()


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    head = [f"{n}: ours, ms | theirs, ms | their time / ours" for n in STEPS]
    lines = ["| operator | " + " | ".join(head) + " |", "| --- |" + " ---: |" * 6]
    for r in rows:
        cells = [f"{r.ours[n]:.3f} | {r.theirs[n]:.3f} | {r.share[n]:.2f}" for n in STEPS]
        lines.append(f"| {r.operator} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def record(given: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Write what was measured so far."""
    import fla
    import triton

    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    asked = {n: getattr(given, n) for n in ("B", "T", "H", "K", "V", "dtype", "configurations", "rounds")}
    whole = {**found, "fla": fla.__version__, "asked": asked, "rows": [asdict(r) for r in rows]}
    given.json.write_text(json.dumps(whole, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; 0 where everything was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", choices=sorted(PAIRS))
    parser.add_argument("--dtype", default="bf16")
    for name, size in (("B", 2), ("T", 4096), ("H", 8), ("K", 128), ("V", 128), ("rounds", 30)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--configurations", type=int, default=3)
    parser.add_argument("--compilers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=95.0, help="after which no further operator is begun")
    parser.add_argument("--compile-only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kernels", action="store_true", help="print what each GPU kernel takes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: speed is measured on a GPU alone", file=sys.stderr)
        return 3
    start = time.perf_counter()
    limit(given.configurations)
    sizes = {n: getattr(given, n) for n in ("B", "T", "H", "K", "V")}
    names = given.op or list(PAIRS)
    gates = {n: "production" if registry.operator(n).gated else "none" for n in names}
    cases = [Case(n, **sizes, dtype=given.dtype, gate=gates[n], cotangent="o", seed=1) for n in names]
    if given.compile_only is not None:
        compile_one(cases[0], given.compile_only)
        return 0
    if given.compilers:
        compile_first(cases, given.configurations, given.compilers, given.seconds / 2)
    rows: list[Row] = []
    for case in cases:
        if time.perf_counter() - start > given.seconds:
            print(f"{case.operator}: time was up", flush=True)
            continue
        try:
            row = compared(case, given.rounds, given.kernels)
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            print(f"{case.operator:20} {type(error).__name__}: {said}", flush=True)
            continue
        rows.append(row)
        cells = (f"{n} ours {row.ours[n]:.3f} ms theirs {row.theirs[n]:.3f} ms share {row.share[n]:.2f}" for n in STEPS)
        print(f"{case.operator:20}" + "   ".join(cells), flush=True)
        if given.json:
            record(given, rows)
    print(f"\ntheirs: the fastest of {given.configurations or 'all'} configurations a kernel\n\n{markdown(rows)}")
    return 0 if len(rows) == len(cases) and all(r.theirs["forward"] > 0 for r in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
