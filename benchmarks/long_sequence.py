"""Check one long sequence and say what it took: time by part, and peak memory of the judge beyond the target's own tensors.

    python benchmarks/long_sequence.py [--tokens 1048576] [--device cuda:0] [--dtype bf16]... [--target T --op OP]

Without a target: the built-in chunkwise form on a CPU, flash-linear-attention's chunk kernel on a GPU. B=1, H=2, K=V=64.
"""

import argparse
import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from linverify.case import Case
from linverify.draw import problem
from linverify.judge import Judge
from linverify.long_cases import HEADS, WIDTH, long_strata
from linverify.plan import Plan
from linverify.problem import Call, Program
from linverify.profile import profile
from linverify.session import Shared, examinations, one_thread, open_runner
from linverify.streamed import Stream
from linverify.target import parse

DEFAULT = {"cpu": "linverify.impls.torch_chunkwise:gla", "cuda": "fla.ops.gla:chunk_gla"}
GIB = 2**30


class Silent:
    """A listener with nothing to say."""

    def __getattr__(self, _: str) -> object:
        return lambda *_: None


def _host_bytes(word: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def _forget_peak(device: torch.device) -> tuple[int, int]:
    """Start measuring anew; what is held now, on the host and on the device."""
    Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return _host_bytes("VmRSS"), torch.cuda.memory_allocated(device)
    return _host_bytes("VmRSS"), 0


def _peak(device: torch.device, before: tuple[int, int]) -> str:
    host = (_host_bytes("VmHWM") - before[0]) / GIB
    if device.type != "cuda":
        return f"host +{host:.2f} GiB"
    return f"device +{(torch.cuda.max_memory_allocated(device) - before[1]) / GIB:.2f} GiB, host +{host:.2f} GiB"


def measure(plan: Plan, dtype: str, tokens: int) -> None:
    """Run one case of this dtype and print a line for each part."""
    device = torch.device(plan.device)
    start = perf_counter()
    with one_thread(), open_runner(plan, parse(plan.target)) as runner:
        examination = next(examinations(plan, runner, Silent(), Shared()))  # type: ignore[arg-type]  # hears everything
        capabilities = examination.binding.capabilities
        fitting = replace(profile("thorough"), streamed_T=tokens, gpu_streamed_T=tokens)
        backend = examination.backend
        (stratum,) = long_strata(examination.operator, capabilities, fitting, plan.device, (dtype,), backend)
        case: Case = stratum.strategy.example()
        print(f"{case.id}  import {perf_counter() - start:.1f} s", flush=True)
        start = perf_counter()
        posed = problem(case, examination.operator)
        print(f"  drawn in {perf_counter() - start:.1f} s", flush=True)
        short = problem(case.with_(T=8192), examination.operator)
        start = perf_counter()
        runner.run(Program((Call(short),)), time_limit=900)
        print(f"  target at T=8192, compiling included: {perf_counter() - start:.1f} s", flush=True)
        start = perf_counter()
        (result,) = runner.run(Program((Call(posed),)), time_limit=900)
        said = {k: round(v, 3) for k, v in result.seconds.items()}
        print(f"  target: {perf_counter() - start:.1f} s, of which {said}", flush=True)
        judge = Judge(examination.operator, plan.device)
        wanted = {"o", *(("state",) if posed.final_state else ()), *(f"d{n}" for n in posed.wrt)}
        found = {n: t for n, t in result.named().items() if n in wanted}
        own = sum(t.nbytes for t in (*posed.tensors.values(), *posed.cotangents.values(), *found.values()))
        before = _forget_peak(device)
        start = perf_counter()
        peaks = Stream(judge, posed, found, examination.bench.precision(case)).judged()
        parts = {k: round(v, 1) for k, v in judge.seconds.items()}
        print(
            f"  judged in {perf_counter() - start:.1f} s {parts}; {_peak(device, before)}; own tensors {own / GIB:.2f} GiB"
        )
        for name, peak in peaks.items():
            s = peak.score
            print(
                f"    {name:15} {s.outcome:8} {s.share:6.3f} of the budget, {s.statistic}, tokens {peak.start}-{peak.stop}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every dtype, whatever happens to one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--target")
    parser.add_argument("--op", default="gla")
    given = parser.parse_args(arguments)
    target = given.target or DEFAULT[torch.device(given.device).type]
    print(f"{target} on {given.device}, {os.cpu_count()} cores, H={HEADS}, K=V={WIDTH}", flush=True)
    for dtype in given.dtype or ("bf16",):
        try:
            measure(Plan(target, operator=given.op, device=given.device), dtype, given.tokens)
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    main()
