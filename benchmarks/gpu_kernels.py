"""The built-in Triton and CUDA kernels on a GPU, judged: one process for each function, several at a time.

    python benchmarks/gpu_kernels.py [--seconds 115] [--jobs 8] [--json F] [MODULE:FUNCTION,...:DTYPE,... ...]
    python benchmarks/gpu_kernels.py --speed [MODULE:FUNCTION,...:DTYPE,... ...]

Each function meets every size below with every kind of gate that its operator has; what is printed is the worst share of the
budget by result (above 1 is a violation), with its case where it comes near, and exceptions: a row for each dtype as soon as it
is through, and for the one at hand when time is over. With --speed, alone on the GPU and one after the other: milliseconds of a
call, and of a call with its gradients. Without arguments: all there are.
"""

import argparse
import json
import os
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


def judged(module: str, name: str, dtype: str, until: float) -> dict[str, Any]:
    """Run the cases of one function in one dtype, until some time of the clock: the row to print."""
    start = time.time()
    subject = Subject(module, name)
    judge = Judge(subject.operator, DEVICE)
    precision = precision_class(dtype, DEVICE, subject.claims)
    worst: dict[str, tuple[float, str]] = {}
    errors: list[str] = []
    every, count = list(cases(subject.operator, dtype)), 0
    for case in every:
        if time.time() > until:
            break
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
            errors.append(f"{case.id}: {traceback.format_exc()[-900:]}")
            if "CUDA error" in str(error):
                break
    return {
        "bad": bool(errors) or any(not share <= 1.0 for share, _ in worst.values()),
        "function": f"{module}:{name}",
        "dtype": dtype,
        "judged_as": precision,
        "cases": f"{count} of {len(every)}",
        "seconds": round(time.time() - start),
        "shares": {n: round(s, 3) for n, (s, _) in worst.items()},
        "near": {n: where for n, (s, where) in worst.items() if not s <= NEAR},
        "errors": errors,
    }


def timed(module: str, name: str, dtype: str, _: float) -> dict[str, Any]:
    """Milliseconds of a call, and of a call with gradients: medians of ten, after one that compiles."""
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


def one(module: str, name: str, dtypes: str, until: float, *, speed: bool, out: Path | None) -> None:
    """Print a row for each dtype of one function."""
    for dtype in dtypes.split(","):
        if time.time() > until:
            print(json.dumps({"bad": True, "function": f"{module}:{name}", "dtype": dtype, "errors": ["time ran out"]}))
            continue
        row = json.dumps((timed if speed else judged)(module, name, dtype, until))
        print(row, flush=True)
        if out:
            with out.open("a", encoding="utf-8") as stream:
                stream.write(row + "\n")


def main() -> int:
    """Run everything that is asked for within the time; 1 where a row is bad or missing."""
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("asked", nargs="*")
    parser.add_argument("--seconds", type=float, default=115.0)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--json", type=Path, help="the rows, a line each, as they come")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        *what, until = given.one
        one(*what, float(until), speed=given.speed, out=given.json)
        return 0
    more = [*(["--speed"] if given.speed else []), *(["--json", str(given.json)] if given.json else [])]
    queue = [
        [module, name, dtypes]
        for module, names, dtypes in (a.split(":") for a in given.asked or FUNCTIONS)
        for name in names.split(",")
    ]
    expected = sum(len(dtypes.split(",")) for _, _, dtypes in queue)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    running: list[tuple[list[str], Path, subprocess.Popen[bytes]]] = []
    shown: dict[Path, int] = {}
    rows: list[dict[str, Any]] = []

    def show(log: Path) -> None:
        """Print what is new."""
        lines = log.read_text(errors="replace").splitlines()
        new = lines[shown.get(log, 0) :]
        shown[log] = len(lines)
        rows.extend(json.loads(line) for line in new if line.startswith("{") and line.endswith("}"))
        if new:
            print("\n".join(new[-12:]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        while queue or running:
            over = time.time() - start > given.seconds
            for entry in list(running):
                command, log, process = entry
                show(log)
                if process.poll() is None and not over:
                    continue
                process.kill()
                process.wait()
                show(log)
                running.remove(entry)
                if over or process.returncode:
                    print(f"{':'.join(command)} ended with {process.returncode}", flush=True)
            if over:
                print(f"not started: {[':'.join(c) for c in queue]}")
                break
            while queue and len(running) < (1 if given.speed else given.jobs):
                command = queue.pop(0)
                log = Path(folder) / f"{len(queue)}.log"
                # Its own end before ours: what it has by then is worth a row.
                line = [sys.executable, "-u", __file__, *more, "--one", *command, str(start + given.seconds - 8)]
                with log.open("wb") as out:
                    running.append((command, log, subprocess.Popen(line, stdout=out, stderr=out, env=environment)))
            time.sleep(0.2)
    bad = [f"{r['function']} {r['dtype']}" for r in rows if r.get("bad")]
    print(f"{len(rows)} of {expected} rows after {time.time() - start:.0f} s, bad: {bad}", flush=True)
    return int(bool(bad) or len(rows) < expected)


if __name__ == "__main__":
    raise SystemExit(main())
