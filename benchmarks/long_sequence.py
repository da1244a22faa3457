"""Check one long sequence and say what it took: time by part, and peak memory of the judge beyond the target's own tensors.

    python benchmarks/long_sequence.py [--tokens 1048576] [--device cuda:0] [--dtype bf16]... [--target T --op OP] [--json F]

Without a target: the built-in chunkwise form on a CPU, flash-linear-attention's chunk kernel on a GPU. B=1, H=2, K=V=64. On a
GPU the memory is what torch's allocator had given out at most while judging, less what it had before; the kernel runs in a
process of its own. Prints how far the judge is, sweep by sweep. Exit code 1 where a result is wrong, or where the judge takes
more than 4 GiB.
"""

import argparse
import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from linverify.case import Case
from linverify.draw import problem
from linverify.judge import Judge
from linverify.long_cases import HEADS, WIDTH, long_strata
from linverify.plan import Plan
from linverify.problem import Call, Problem, Program, Result
from linverify.profile import profile
from linverify.session import Shared, examinations, one_thread, open_runner
from linverify.streamed import Peak, Stream
from linverify.target import parse

DEFAULT = {"cpu": "linverify.impls.torch_chunkwise:gla", "cuda": "fla.ops.gla:chunk_gla"}
GIB = 2**30
ALLOWED = 4 * GIB


class Silent:
    """A listener with nothing to say."""

    def __getattr__(self, _: str) -> object:
        return lambda *_: None


class Told(Stream):
    """A stream that says how far it is."""

    def _swept(self, *given: Any) -> dict[str, Peak]:
        start = perf_counter()
        found = super()._swept(*given)
        names = {n: round(p.score.share, 2) for n, p in sorted(found.items())}
        what = f"{len(given[0])} stacks, segments of {self._segment} in pieces of {self._piece}"
        print(f"  swept in {perf_counter() - start:.1f} s: {what}; ratios {names}", flush=True)
        return found


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


def _peaks(device: torch.device, before: tuple[int, int]) -> dict[str, float]:
    """GiB beyond what was held before."""
    found = {"host": (_host_bytes("VmHWM") - before[0]) / GIB}
    if device.type == "cuda":
        found["device"] = (torch.cuda.max_memory_allocated(device) - before[1]) / GIB
        found["device, with what the allocator keeps"] = torch.cuda.max_memory_reserved(device) / GIB
    return found


def judged(
    judge: Judge, posed: Problem, result: Result, precision: str, segment: tuple[int, int] | None
) -> dict[str, Any]:
    """Judge a result segment by segment, and print and return what it took."""
    wanted = {"o", *(("state",) if posed.final_state else ()), *(f"d{n}" for n in posed.wrt)}
    found = {n: t for n, t in result.named().items() if n in wanted}
    own = sum(t.nbytes for t in (*posed.tensors.values(), *posed.cotangents.values(), *found.values())) / GIB
    lengths = {} if segment is None else {"segment": segment[0], "piece": segment[1]}
    stream = Told(judge, posed, found, precision, **lengths)
    before = _forget_peak(judge.device)
    start = perf_counter()
    peaks = stream.judged()
    seconds = perf_counter() - start
    taken = _peaks(judge.device, before)
    parts = {k: round(v, 1) for k, v in judge.seconds.items()}
    memory = ", ".join(f"{where} +{x:.2f} GiB" for where, x in taken.items())
    print(f"  judged in {seconds:.1f} s {parts}; {memory}; own tensors {own:.2f} GiB")
    for name, peak in peaks.items():
        s = peak.score
        print(
            f"    {name:15} {s.outcome:8} {s.share:6.3f} of the budget, {s.statistic}, tokens {peak.start}-{peak.stop}"
        )
    shares = {n: {"outcome": p.score.outcome, "share": p.score.share} for n, p in peaks.items()}
    return {"seconds": seconds, "parts": parts, "GiB": taken, "own GiB": own, "results": shares}


def measure(plan: Plan, dtype: str, tokens: int, segment: tuple[int, int] | None) -> dict[str, Any]:
    """Run one case of this dtype and print a line for each part."""
    device = torch.device(plan.device)
    start = perf_counter()
    with one_thread(), open_runner(plan, parse(plan.target)) as runner:
        examination = next(examinations(plan, runner, Silent(), Shared()))  # type: ignore[arg-type]  # hears everything
        capabilities = examination.binding.capabilities
        fitting = replace(profile("thorough"), streamed_T=tokens, gpu_streamed_T=tokens)
        (stratum,) = long_strata(
            examination.operator, capabilities, fitting, plan.device, (dtype,), examination.backend
        )
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
        found = judged(judge, posed, result, examination.bench.precision(case), segment)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"case": case.id, "target": plan.target, "device": where, "torch": torch.__version__, **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every dtype, whatever happens to one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--target")
    parser.add_argument("--op", default="gla")
    parser.add_argument("--segment", type=int, nargs=2, metavar=("TOKENS", "PIECE"), help="in place of what fits")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    target = given.target or DEFAULT[torch.device(given.device).type]
    print(f"{target} on {given.device}, {os.cpu_count()} cores, H={HEADS}, K=V={WIDTH}", flush=True)
    records, fell_short = [], False
    for dtype in given.dtype or ("bf16",):
        try:
            plan = Plan(target, operator=given.op, device=given.device)
            records.append(measure(plan, dtype, given.tokens, tuple(given.segment) if given.segment else None))
        except Exception:
            traceback.print_exc()
            fell_short = True
            continue
        wrong = any(r["outcome"] != "pass" for r in records[-1]["results"].values())
        fell_short |= wrong or records[-1]["GiB"].get("device", records[-1]["GiB"]["host"]) > ALLOWED / GIB
        if given.json:
            given.json.write_text(json.dumps(records, indent=1))
    return int(fell_short)


if __name__ == "__main__":
    raise SystemExit(main())
