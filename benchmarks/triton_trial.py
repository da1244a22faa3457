"""Every kernel of a module on a GPU at once, judged: one process an operator and dtype, as many at a time as asked.

    python benchmarks/triton_trial.py [--seconds 95] [--jobs 16] [--speed gla,simple_gla] MODULE:OPERATOR,...:DTYPE,... ...

Prints the worst share of the budget by result (above 1 is a violation), exceptions, and then the speeds.
"""

import argparse
import importlib
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

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"

SIZES = (
    {"B": 2, "T": 200, "H": 3, "K": 64, "V": 48},
    {"B": 1, "T": 150, "H": 2, "K": 64, "V": 48, "lengths": (80, 0, 1, 69)},
    {"B": 1, "T": 17, "H": 3, "K": 64, "V": 48, "regime": "outlier"},
    {"B": 2, "T": 64, "H": 1, "K": 64, "V": 48, "regime": "integers", "gate": "exact"},
    {"B": 1, "T": 1030, "H": 2, "K": 64, "V": 48},
    {"B": 2, "T": 90, "H": 2, "K": 100, "V": 130},
)


def cases(operator: Operator, dtype: str) -> Iterator[Case]:
    """Every size with every kind of gate that the operator has."""
    gates = [g for g in ("none", "mild", "strong", "reset") if g in gate_regimes(operator)]
    for sizes in SIZES:
        if sizes.get("regime", "normal") not in ("normal", "integers", *operand_regimes(operator)):
            continue
        exact = sizes.get("regime") == "integers"
        if exact and "X1" not in operator.identities:
            continue
        for gate in ("exact" if operator.gated else "none",) if exact else gates:
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
    bad = failed or any(not share <= 1.0 for share, _ in worst.values())
    shares = " ".join(f"{n}={s:.2f}" for n, (s, _) in worst.items())
    print(f"{'BAD' if bad else 'ok '} {module}:{name} {dtype} {time.perf_counter() - start:.0f}s {shares}")
    for n, (share, where) in worst.items():
        if not share <= 1.0:
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
    parser.add_argument("--speed-seconds", type=float, default=35.0)
    given = parser.parse_args()
    jobs: list[list[str]] = [
        [__file__, f"--judge={module}:{name}:{dtype}"]
        for module, names, dtypes in (a.split(":") for a in given.asked)
        for dtype in dtypes.split(",")
        for name in names.split(",")
    ]
    speed = str(Path(__file__).with_name("triton_speed.py"))
    for name in filter(None, given.speed.split(",")):
        jobs += [[speed, "--op", name, "--configurations", "3", "--compile-only", str(i)] for i in range(3)]
    running: list[tuple[list[str], Path, subprocess.Popen[bytes]]] = []
    with tempfile.TemporaryDirectory() as folder:
        queue = list(enumerate(jobs))
        while queue or running:
            late = time.perf_counter() - start > given.seconds - (given.speed_seconds if given.speed else 0.0)
            for entry in list(running):
                command, log, process = entry
                if process.poll() is None and not late:
                    continue
                process.kill()
                running.remove(entry)
                text = log.read_text(errors="replace").strip()
                print("\n".join(text.splitlines()[-25:]) or f"{command[1:]} no word, rc {process.poll()}", flush=True)
            if late:
                print(f"not started: {[c[1:] for _, c in queue]}")
                break
            while queue and len(running) < given.jobs:
                number, command = queue.pop(0)
                log = Path(folder) / f"{number}.log"
                with log.open("wb") as stream:
                    running.append(
                        (command, log, subprocess.Popen([sys.executable, *command], stdout=stream, stderr=stream))
                    )
            time.sleep(0.1)
    print(f"judged after {time.perf_counter() - start:.0f} s", flush=True)
    if given.speed:
        ops = [x for name in given.speed.split(",") for x in ("--op", name)]
        left = max(5.0, given.seconds - (time.perf_counter() - start))
        try:
            subprocess.run(
                [sys.executable, speed, *ops, "--configurations", "3", "--kernels"], timeout=left, check=False
            )
        except subprocess.TimeoutExpired:
            print("speed: no time left")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("--judge="):
        judged(*sys.argv[1].removeprefix("--judge=").split(":"))
    else:
        raise SystemExit(main())
