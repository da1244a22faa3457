"""Do the workers of ``pytest -n`` and ``check -n`` spread over all GPUs, and keep to their own and to their share of it?

    python -m benchmarks.several_gpus [--workers 4] [--seconds 55]

Both run at once, on a right kernel that says where it is called and tries to take more memory than its share; every process
of theirs says which GPUs it holds a context of. Exit code 1 where a claim below fails, 3 where there are not two GPUs.

* every GPU has its workers, as many as any other to within one;
* no process holds a context of two GPUs, and who hands out work holds none;
* a kernel runs where its judge does;
* a kernel's process may take half of its worker's part of a GPU and not a byte beyond it.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.several_gpus_witness import FOLDER
from linverify import gpus

HOME = Path(__file__).resolve().parents[1]
LAWS = (
    "agreement",
    "gradients",
    "contract",
    "repeated_call",
    "inputs_untouched",
    "state_passing",
    "causality_values",
    "exact",
)
TESTS = """
import linverify

test_kernel = linverify.conformance("benchmarks.several_gpus_kernel:witnessed", op="gla", dtypes=("fp32",))
"""
Record = Mapping[str, Any]


def commands(folder: Path, workers: int) -> dict[str, list[str]]:
    """What is run, by name."""
    (folder / "test_kernels.py").write_text(TESTS)
    installed = any(e.name == "linverify" for e in importlib.metadata.entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "linverify.pytest_plugin"]
    items = [f"test_kernels.py::test_kernel[{law}]" for law in LAWS]
    laws = [word for law in LAWS for word in ("--property", law)]
    own = ["--op", "gla", "--dtype", "fp32", "--profile", "quick", "-n", str(workers), "--device", "cuda"]
    return {
        "pytest": ["-m", "pytest", "-q", *plugin, "--linverify-device", "cuda", "-n", str(workers), *items],
        "check": ["-m", "linverify", "check", "benchmarks.several_gpus_kernel:witnessed", *own, *laws],
    }


def faults(records: Sequence[Record], gpu_count: int, workers: int) -> Iterator[str]:
    """Yield every claim that does not hold of one command.

    Args:
        records: of its processes.
        gpu_count: of the machine.
        workers: of the command.
    """
    others = {r["pid"]: r for r in records if r["role"] != "kernel"}
    kernels = [(r, next((p for p in r["ancestors"] if p in others), 0)) for r in records if r["role"] == "kernel"]
    own = {judge: kernel["device"] for kernel, judge in kernels if judge}
    counts = [list(own.values()).count(f"cuda:{i}") for i in range(gpu_count)]
    if sum(counts) != workers or max(counts) - min(counts) > 1:
        yield f"workers by GPU: {counts}; expected {workers} spread evenly"
    for r in records:
        if len(r["held"]) > 1:
            yield f"{r['role']} {r['pid']} holds contexts of {', '.join(sorted(r['held']))} ({' '.join(r['words'])})"
    for r in others.values():
        if r["held"] and set(r["held"]) - {own.get(r["pid"])}:
            yield f"process {r['pid']} holds {', '.join(r['held'])}, its kernels {own.get(r['pid'], 'are none')}"
    for kernel, _ in kernels:
        yield from _kernel_faults(kernel, gpus.share(list(own.values()), kernel["device"]))


def _kernel_faults(kernel: Record, allowed: float) -> Iterator[str]:
    name, device, share = f"kernel {kernel['pid']}", kernel["device"], kernel["share"]
    if set(kernel["held"]) - {device}:
        yield f"{name} was called on {device} and holds {', '.join(kernel['held'])}"
    if abs(share - allowed) > 1e-6:
        yield f"{name} may take {share:.3f} of {device}, expected {allowed:.3f}"
    if kernel["more"]:
        yield f"{name} took more than its share, {share:.3f}, of {device}"
    if max(kernel["held"].values(), default=0.0) > share:
        yield f"{name} had {max(kernel['held'].values()):.3f} of {device}, its share is {share:.3f}"


def described(records: Sequence[Record]) -> Iterator[str]:
    """Yield a line for every process that holds a GPU."""
    for r in sorted(records, key=lambda r: (r["role"], sorted(r["held"]), r["pid"])):
        if r["held"]:
            peaks = ", ".join(f"{d} (at most {part:.2%} of its memory)" for d, part in r["held"].items())
            share = f"; share {r['share']:.3f}, more refused" if r["role"] == "kernel" and not r["more"] else ""
            yield f"  {r['role']:7} {r['pid']:7} holds {peaks}{share}"


def seen_from_outside() -> set[tuple[str, str]]:
    """Process id, as the driver counts, and GPU of everything that computes now."""
    query = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [tuple(word.strip() for word in line.split(",")) for line in done.stdout.splitlines()]
    return {(row[0], row[1]) for row in rows if len(row) == 2}


def run(folder: Path, workers: int, seconds: float) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Run both commands at once; return their exit codes, and what the driver saw meanwhile."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(Path(HOME, "benchmarks", "several_gpus_witness.py").read_text())
    path = os.pathsep.join([str(site), str(HOME)])
    running, codes = {}, {}
    before, seen = seen_from_outside(), set[tuple[str, str]]()
    deadline = time.monotonic() + seconds
    for name, words in commands(folder, workers).items():
        (folder / name).mkdir()
        with (folder / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, FOLDER: str(folder / name), "COLUMNS": "120"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    while running:
        time.sleep(0.3)
        seen |= seen_from_outside() - before
        for name, process in list(running.items()):
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGINT if time.monotonic() < deadline + 5 else signal.SIGKILL)
            if process.poll() is not None:
                codes[name] = running.pop(name).returncode
    return codes, seen


def main() -> int:
    """Run, show, and say what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=55.0)
    given = parser.parse_args()
    count = len(gpus.found())
    if count < 2 or shutil.which("nvidia-smi") is None:
        print(f"needs two GPUs, found {count}: nothing was tried")
        return 3
    wrong = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="several-gpus-") as name:
        folder = Path(name)
        codes, seen = run(folder, given.workers, given.seconds)
        for command, code in codes.items():
            records = [json.loads(f.read_text()) for f in sorted((folder / command).glob("*.json"))]
            print(f"=== {command} -n {given.workers}: exit {code}", *described(records), sep="\n")
            print((folder / f"{command}.log").read_text()[-2500:])
            wrong += [f"{command}: {fault}" for fault in faults(records, count, given.workers)]
            wrong += [f"{command}: exit {code}"] if code else []
    both = sorted(pid for pid, n in Counter(pid for pid, _ in seen).items() if n > 1)
    wrong += [f"the driver saw processes on several GPUs: {', '.join(both)}"] if both else []
    processes, used = ({row[i] for row in seen} for i in range(2))
    print(f"the driver saw {len(processes)} processes on {len(used)} of {count} GPUs, {len(both)} of them on several")
    print(*(f"WRONG: {w}" for w in wrong), sep="\n")
    print(f"{'nothing wrong' if not wrong else 'not as claimed'}, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
