"""The built-in Triton and CUDA kernels on a GPU, judged: one process for each function and dtype, several at a time.

    python benchmarks/gpu_kernels.py [--seconds 115] [--jobs 8] [--json F] [MODULE:FUNCTION,...:DTYPE,... ...]
    python benchmarks/gpu_kernels.py --speed [MODULE:FUNCTION,...:DTYPE,... ...]

Each function meets every size below with every kind of gate that its operator has; what is printed is the worst share of the
budget by result (above 1 is a violation), with its case where it comes near, and exceptions. With --speed, alone on the GPU and
one after the other: milliseconds of a call, and of a call with its gradients. Without arguments: all there are.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from linverify import draw, registry
from linverify.binding import bind
from linverify.case import Case
from linverify.describe import load
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.recipe import precision_class
from linverify.regime import gate_regimes, operand_regimes
from tests.kinds import suited

NEAR = 0.7  # shares from here on are shown with their case
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
DECAY = "gla,simple_gla,linear_attention,retention,lightning_attention"
FUNCTIONS = (
    "triton_attention:softmax_attention:bf16,fp16,fp32",
    "cuda_selective_scan:selective_scan:fp32,bf16,fp16",
    "cuda_rwkv6:rwkv6:bf16,fp16,fp32",
    "cuda_causal_product:one_block_per_head,low_occupancy:fp32,bf16,fp16",
    "triton_recurrent:gla,rwkv7,kda,rwkv6,gated_delta_rule,mamba2:bf16,fp16,fp32",
    f"triton_chunkwise:{DECAY}:fp16,bf16,fp32",
    "triton_delta:delta_rule,gated_delta_rule,kda,gated_delta_product:bf16,fp16,fp32",
)
SIZES = (
    {"B": 2, "T": 200, "H": 3, "K": 64, "V": 48},
    {"B": 1, "T": 150, "H": 2, "K": 64, "V": 48, "lengths": (80, 0, 1, 69)},
    {"B": 1, "T": 17, "H": 3, "K": 64, "V": 48, "regime": "outlier"},
    {"B": 2, "T": 64, "H": 1, "K": 64, "V": 48, "regime": "integers"},
    {"B": 1, "T": 1030, "H": 2, "K": 64, "V": 48},
)
WIDE = {"B": 2, "T": 90, "H": 2, "K": 100, "V": 130}  # in bf16 alone: another compilation of every kernel
TIMED = {"B": 2, "T": 2048, "H": 8, "K": 64, "V": 64}


def cases(operator: Operator, dtype: str) -> Iterator[Case]:
    """Every size with every kind of gate that the operator has."""
    gates = [g for g in ("none", "mild", "strong", "reset") if g in gate_regimes(operator)] or ["none"]
    for sizes in (*SIZES, *([WIDE] if dtype == "bf16" else [])):
        if sizes.get("regime", "normal") not in ("normal", "integers", *operand_regimes(operator)):
            continue
        exact = sizes.get("regime") == "integers"
        if exact and "integers" not in operand_regimes(operator, on_request=True):
            continue
        for gate in ("exact" if "exact" in gate_regimes(operator, on_request=True) else "none",) if exact else gates:
            settled = {"state": "normal", "final_state": True, "cotangent": "both", "gate": gate, "seed": 3, **sizes}
            yield suited(Case(operator.name, dtype=dtype, **settled), operator)  # type: ignore[arg-type]


class Subject:
    """A function and its operator, ready to be called with problems."""

    def __init__(self, module: str, name: str) -> None:
        functions, description = load("module", f"linverify.impls.{module}", name)
        (claim,) = description.functions[0].claims
        self.function, self.claims = functions[name], dict(claim.claims)
        self.operator = registry.operator(claim.operator)
        self.names = bind(self.operator, description.functions[0])

    def results(self, problem: Problem) -> Callable[[], tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]]:
        """A call: what it returns by name, and what gives the gradients of that by name."""
        leaves = {n: x.to(DEVICE).requires_grad_(n in problem.wrt) for n, x in problem.tensors.items()}
        if problem.initial_state is not None:
            leaves["initial_state"] = problem.initial_state.to(DEVICE).requires_grad_("initial_state" in problem.wrt)
        given: dict[str, Any] = dict(leaves) | {"scale": problem.scale, "output_final_state": problem.final_state}
        if problem.lengths:
            given["cu_seqlens"] = torch.tensor([0, *problem.lengths]).cumsum(0).to(DEVICE)
        keywords = {self.names.names[n]: x for n, x in given.items() if n in self.names.names}
        keywords |= self.names.settings
        cotangents = {n: c.to(DEVICE) for n, c in problem.cotangents.items()}
        wrt = {n: leaves[n] for n in problem.wrt}

        def call() -> tuple[dict[str, Tensor], Callable[[], dict[str, Tensor]]]:
            returned = self.function(**keywords)
            o, state = returned if isinstance(returned, tuple) else (returned, None)
            found: dict[str, Tensor] = {n: x for n, x in (("o", o), ("state", state)) if x is not None}

            def gradients() -> dict[str, Tensor]:
                outputs = [found[n] for n in cotangents]
                grads = torch.autograd.grad(outputs, list(wrt.values()), list(cotangents.values()))
                return {f"d{n}": g for n, g in zip(wrt, grads, strict=True)}

            return found, gradients

        return call


def judged(module: str, name: str, dtype: str) -> None:
    """Run the cases of one function in one dtype."""
    start = time.perf_counter()
    subject = Subject(module, name)
    judge = Judge(subject.operator, DEVICE)
    precision = precision_class(dtype, DEVICE, subject.claims)
    worst: dict[str, tuple[float, str]] = {}
    failed, count = 0, 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("  time ran out"))
    try:
        for case in cases(subject.operator, dtype):
            try:
                problem = draw.problem(case, subject.operator)
                found, gradients = subject.results(problem)()
                answer = judge.answer(problem)
                for result, value in {**found, **gradients()}.items():
                    share = judge.score(answer, result, value.detach().cpu(), precision).share
                    if not share <= worst.get(result, (-1.0, ""))[0]:
                        worst[result] = (share, case.id)
                count += 1
            except Exception as error:
                failed += 1
                print(f"  {case.id}: {traceback.format_exc()[-1500:]}", flush=True)
                if "CUDA error" in str(error):
                    break
    finally:
        bad = failed or any(not share <= 1.0 for share, _ in worst.values())
        shares = {n: round(s, 3) for n, (s, _) in worst.items()}
        near = {n: where for n, (s, where) in worst.items() if not s <= NEAR}
        row = {"function": f"{module}:{name}", "dtype": dtype, "judged_as": precision, "cases": count, "failed": failed}
        print(json.dumps({"bad": bool(bad), **row, "shares": shares, "near": near}))
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def timed(module: str, name: str, dtype: str) -> None:
    """Print milliseconds of a call, and of a call with gradients: medians of ten, after one that compiles."""
    subject = Subject(module, name)
    gate = "production" if subject.operator.gated else "none"
    case = suited(Case(subject.operator.name, dtype=dtype, gate=gate, cotangent="o", **TIMED), subject.operator)  # type: ignore[arg-type]
    call = subject.results(draw.problem(case, subject.operator))
    found: list[float] = []
    for whole in (False, True):
        times = []
        for _ in range(11):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()  # type: ignore[no-untyped-call]
            _, gradients = call()
            if whole:
                gradients()
            stop.record()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            times.append(float(start.elapsed_time(stop)))  # type: ignore[no-untyped-call]
        found.append(median(times[1:]))
    print(
        json.dumps(
            {"function": f"{module}:{name}", "dtype": dtype, **TIMED, "forward_ms": found[0], "both_ms": found[1]}
        )
    )


def main() -> int:
    """Run everything that is asked for within the time."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", nargs="*")
    parser.add_argument("--seconds", type=float, default=115.0)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--json", type=Path, help="what was printed, a line each, as it comes")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        (timed if given.speed else judged)(*given.one)
        return 0
    more = ["--speed"] if given.speed else []
    queue = [
        [module, name, dtype]
        for module, names, dtypes in (a.split(":") for a in given.asked or FUNCTIONS)
        for name in names.split(",")
        for dtype in dtypes.split(",")
    ]
    running: list[tuple[list[str], Path, subprocess.Popen[bytes]]] = []
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        while queue or running:
            passed = time.perf_counter() - start
            for entry in list(running):
                command, log, process = entry
                if process.poll() is None and passed < given.seconds:
                    continue
                process.terminate()
                try:
                    process.wait(2.0)
                except subprocess.TimeoutExpired:
                    process.kill()
                running.remove(entry)
                text = log.read_text(errors="replace").strip() or f"{command} no word, exit status {process.poll()}"
                rows = [line for line in text.splitlines() if line.startswith("{")]
                bad |= not rows or any(json.loads(row).get("bad", False) for row in rows)
                print("\n".join(text.splitlines()[-25:]), flush=True)
                if given.json:
                    with given.json.open("a", encoding="utf-8") as stream:
                        stream.writelines(f"{row}\n" for row in rows or [json.dumps({"bad": True, "no word": command})])
            if passed > given.seconds:
                print(f"not started: {[':'.join(c) for c in queue]}")
                return 1
            while queue and len(running) < (1 if given.speed else given.jobs):
                command = queue.pop(0)
                log = Path(folder) / f"{len(queue)}.log"
                line = [sys.executable, "-u", __file__, *more, "--one", *command]
                environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
                with log.open("wb") as out:
                    running.append((command, log, subprocess.Popen(line, stdout=out, stderr=out, env=environment)))
            time.sleep(0.1)
    print(f"ended after {time.perf_counter() - start:.0f} s", flush=True)
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())
