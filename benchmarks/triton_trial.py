"""Every kernel of a module on a GPU at once, judged: one process an operator and dtype, as many at a time as asked.

    python benchmarks/triton_trial.py [--seconds 95] [--jobs 16] [--speed gla,simple_gla] MODULE:OPERATOR,...:DTYPE,... ...

Prints the worst share of the budget by result (above 1 is a violation), exceptions, and then the speeds.
"""

import argparse
import importlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from linverify import draw, registry
from linverify.case import Case
from linverify.implementation import declared
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.recipe import precision_class
from linverify.regime import gate_regimes, operand_regimes
from tests.test_forms import run

NEAR = 0.7  # shares from here on are shown with their case
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"

SIZES = (
    {"B": 2, "T": 200, "H": 3, "K": 64, "V": 48},
    {"B": 1, "T": 150, "H": 2, "K": 64, "V": 48, "lengths": (80, 0, 1, 69)},
    {"B": 1, "T": 17, "H": 3, "K": 64, "V": 48, "regime": "outlier"},
    {"B": 2, "T": 64, "H": 1, "K": 64, "V": 48, "regime": "integers"},
    {"B": 1, "T": 1030, "H": 2, "K": 64, "V": 48},
)
WIDE = {"B": 2, "T": 90, "H": 2, "K": 100, "V": 130}  # in bf16 alone: another compilation of every kernel


def cases(operator: Operator, dtype: str) -> Iterator[Case]:
    """Every size with every kind of gate that the operator has."""
    gates = [g for g in ("none", "mild", "strong", "reset") if g in gate_regimes(operator)]
    for sizes in (*SIZES, *([WIDE] if dtype == "bf16" else [])):
        if sizes.get("regime", "normal") not in ("normal", "integers", *operand_regimes(operator)):
            continue
        exact = sizes.get("regime") == "integers"
        if exact and "integers" not in operand_regimes(operator, on_request=True):
            continue
        for gate in ("exact" if "exact" in gate_regimes(operator, on_request=True) else "none",) if exact else gates:
            settled = {"state": "normal", "final_state": True, "cotangent": "both", "gate": gate, "seed": 3, **sizes}
            yield Case(operator.name, dtype=dtype, **settled)  # type: ignore[arg-type]


def judged(module: str, name: str, dtype: str) -> None:
    """Run the cases of one function in one dtype."""
    start = time.perf_counter()
    operator = registry.operator(name)
    function = getattr(importlib.import_module(f"linverify.impls.{module}"), name)
    judge = Judge(operator, DEVICE)
    precision = precision_class(dtype, DEVICE, dict(declared(function)[0].claims))
    worst: dict[str, tuple[float, str]] = {}
    failed = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("  time ran out"))
    try:
        for case in cases(operator, dtype):
            try:
                problem = draw.problem(case, operator)
                got = run(function, moved(problem))
                answer = judge.answer(problem)
                for result, value in got.items():
                    share = judge.score(answer, result, value.cpu(), precision).share
                    if not share <= worst.get(result, (-1.0, ""))[0]:
                        worst[result] = (share, case.id)
            except Exception as error:
                failed += 1
                print(f"  {case.id}: {traceback.format_exc()[-1500:]}")
                if "CUDA error" in str(error):
                    break
    finally:
        told(f"{module}:{name} {dtype} {time.perf_counter() - start:.0f}s", worst, failed)


def told(what: str, worst: dict[str, tuple[float, str]], failed: int) -> None:
    """Print the worst shares."""
    bad = failed or any(not share <= 1.0 for share, _ in worst.values())
    shares = " ".join(f"{n}={s:.2f}" for n, (s, _) in worst.items())
    print(f"{'BAD' if bad else 'ok '} {what} {shares}")
    for n, (share, where) in worst.items():
        if not share <= NEAR:
            print(f"     {n} {share:.3g} {where}")


def moved(problem: Problem) -> Problem:
    """The problem on the device."""
    state = problem.initial_state
    return replace(
        problem,
        tensors={n: x.to(DEVICE) for n, x in problem.tensors.items()},
        initial_state=None if state is None else state.to(DEVICE),
        cotangents={n: x.to(DEVICE) for n, x in problem.cotangents.items()},
    )


def main() -> int:
    """Run everything that is asked for within the time."""
    start = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("asked", nargs="*")
    parser.add_argument("--seconds", type=float, default=95.0)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--speed", default="")
    given = parser.parse_args()
    judges = [
        [__file__, f"--judge={module}:{name}:{dtype}"]
        for module, names, dtypes in (a.split(":") for a in given.asked)
        for dtype in dtypes.split(",")
        for name in names.split(",")
    ]
    speed = str(Path(__file__).with_name("triton_speed.py"))
    names = list(filter(None, given.speed.split(",")))
    compilers = [[speed, "--op", n, "--configurations", "3", "--compile-only", str(i)] for n in names for i in range(3)]
    measure = [speed, *(x for n in names for x in ("--op", n)), "--configurations", "3", "--kernels"]
    running: list[tuple[list[str], Path, subprocess.Popen[bytes]]] = []
    with tempfile.TemporaryDirectory() as folder:
        queue, count = [*compilers, *judges], 0
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
                text = log.read_text(errors="replace").strip()
                if text or process.poll():
                    print(
                        "\n".join(text.splitlines()[-25:]) or f"{command[1:]} no word, rc {process.poll()}", flush=True
                    )
            if passed > given.seconds:
                print(f"not started: {[c[1:] for c in queue]}")
                break
            compiling = any(c in compilers for c, _, _ in running)
            if measure and names and count >= len(compilers) and (not compiling or passed > given.seconds / 2):
                queue, measure = [measure, *queue], []
            while queue and len(running) < given.jobs:
                command, count = queue.pop(0), count + 1
                log = Path(folder) / f"{count}.log"
                with log.open("wb") as stream:
                    running.append(
                        (command, log, subprocess.Popen([sys.executable, "-u", *command], stdout=stream, stderr=stream))
                    )
            time.sleep(0.1)
    print(f"ended after {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("--judge="):
        judged(*sys.argv[1].removeprefix("--judge=").split(":"))
    else:
        raise SystemExit(main())
