"""Every autotuning configuration of two of fla's chunk kernels, forward and backward: which are right, and how long it takes.

    python benchmarks/sweep.py [--only gla] [--dtype bf16]... [--seconds 230] [--out sweep]

Runs `linverify check TARGET --autotune all --property configurations` for every target at once: what one of them does alone
(import, the first compilation) is time for the others. Records are files of --out; a run that was cut off, by its own time or
by a signal, goes on from them: give the same command again. Prints a Markdown table of configurations by kernel and verdict,
the name of every one that is not right, and the wall time of all runs together. Exit code 0 where every configuration has a
verdict and none is wrong, 1 where one is wrong, 3 where some are left.

With Hopper's lists (fla-core 0.6.0, one case with K = 128, V = 64, T = 65) chunk_gla launches 10 autotuned kernels with 230
configurations in 48 runs, chunk_delta_rule 9 with 90 in 27; every run compiles what is new in it, some 380 compilations.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGETS = {"gla": "fla.ops.gla:chunk_gla", "delta_rule": "fla.ops.delta_rule:chunk_delta_rule"}
# After its own limit a check has this long to judge what it has in hand and to write its record, before it is ended.
GRACE = 20.0


def words(op: str, out: Path, seconds: float, given: argparse.Namespace) -> list[str]:
    """The command of one target; it goes on from the record of an earlier run."""
    record = out / f"{op}.json"
    asked = [sys.executable, "-m", "linverify", "check", given.target or TARGETS[op], "--op", op, "--autotune", "all"]
    asked += [
        "--property",
        "configurations",
        "--profile",
        "standard",
        "--time",
        f"{seconds:.0f}",
        "--json",
        str(record),
    ]
    asked += [word for d in given.dtype or ["bf16"] for word in ("--dtype", d)]
    asked += ["--device", given.device] if given.device else []
    return [*asked, *(["--resume", str(record)] if record.exists() else [])]


def run(ops: Sequence[str], out: Path, given: argparse.Namespace) -> None:
    """Sweep every target that still has something to do, all at once; what one prints goes to OP.txt."""
    start = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    for op in ops:
        with (out / f"{op}.txt").open("ab") as log:
            running[op] = subprocess.Popen(
                words(op, out, given.seconds, given), stdout=log, stderr=log, env={**os.environ, "COLUMNS": "150"}
            )
    taken = dict.fromkeys(running, 0.0)
    while running:
        time.sleep(0.2)
        late = time.monotonic() - start - given.seconds - GRACE
        for op, process in list(running.items()):
            if late > GRACE:
                process.kill()
            elif late > 0:
                process.send_signal(signal.SIGINT)  # its record is written all the same
                time.sleep(0.5)
            if process.poll() is not None:
                taken[op] = time.monotonic() - start
                print(f"{op}: exit {process.returncode} after {taken[op]:.1f} s", flush=True)
                del running[op]
    for op, seconds in taken.items():
        clock = out / f"{op}.seconds.json"
        before = json.loads(clock.read_text()) if clock.exists() else []
        clock.write_text(json.dumps([*before, round(seconds, 1)]))


def result(out: Path, op: str) -> dict[str, Any]:
    """The record of a target; empty where there is none."""
    path = out / f"{op}.json"
    found = json.loads(path.read_text())["results"] if path.exists() else []
    return found[0] if found else {}


def complete(found: dict[str, Any]) -> bool:
    """Whether every configuration has a verdict."""
    laws = found.get("properties", [])
    return bool(found.get("configurations")) and bool(laws) and laws[0]["status"] != "unchecked"


def table(op: str, out: Path, found: dict[str, Any], *, every: bool) -> str:
    """Markdown on one target."""
    counts: dict[str, Counter[str]] = {}
    for c in found.get("configurations", []):
        counts.setdefault(c["kernel"], Counter())[c["status"]] += 1
    statuses = ("pass", "violation", "marginal", "refused")
    clock = json.loads((out / f"{op}.seconds.json").read_text())
    named = "chunk_" + op
    lines = [f"## `{named}`: {sum(clock):.0f} s" + (f" in {len(clock)} runs" if clock[1:] else ""), ""]
    if not complete(found):
        lines += [f"**Not complete**: {_why(found)}; the same command goes on.", ""]
    lines += ["| kernel | right | wrong | in doubt | no room |", "| --- | --- | --- | --- | --- |"]
    for kernel, seen in sorted(counts.items()):
        lines.append(f"| `{kernel}` | " + " | ".join(str(seen[s]) if seen[s] else "-" for s in statuses) + " |")
    total = sum(counts.values(), Counter[str]())
    lines.append(f"| all {sum(total.values())} | " + " | ".join(str(total[s]) for s in statuses) + " |")
    lines += ["", *(f"* {c['status']}: `{c['kernel']}` `{c['configuration']}`: {c['note']}" for c in _told(found)), ""]
    if every:
        lines += [
            f"    {c['status']:9} {c['kernel']} {{{c['configuration']}}}" for c in found.get("configurations", [])
        ]
    seconds = {k: round(v, 1) for k, v in found.get("seconds", {}).items()}
    return "\n".join([*lines, f"Seconds of the last run: {seconds}", ""])


def _why(found: dict[str, Any]) -> str:
    laws = found.get("properties", [])
    return (laws[0]["note"] if laws else "") or found.get("reason", "") or "there is no record"


def _told(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for c in found.get("configurations", []) if c["status"] not in ("pass", "refused")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(TARGETS), help="operator; every one by default")
    parser.add_argument("--target", help="in place of fla's; with one --only")
    parser.add_argument("--dtype", action="append")
    parser.add_argument("--device")
    parser.add_argument("--seconds", type=float, default=230.0)
    parser.add_argument(
        "--every", action="store_true", help="print the verdict of every configuration, not the wrong ones alone"
    )
    parser.add_argument("--out", type=Path, default=Path("sweep"))
    given = parser.parse_args(arguments)
    ops = given.only or list(TARGETS)
    if given.target and len(ops) != 1:
        parser.error("--target names one function: say which operator it computes with one --only")
    given.out.mkdir(parents=True, exist_ok=True)
    left = [op for op in ops if not complete(result(given.out, op))]
    run(left, given.out, given)
    print(f"torch {importlib.metadata.version('torch')}, triton {importlib.metadata.version('triton')}\n")
    found = {op: result(given.out, op) for op in ops}
    for op in ops:
        print(table(op, given.out, found[op], every=given.every))
    if any(c["status"] == "violation" for r in found.values() for c in r.get("configurations", [])):
        return 1
    return 0 if all(map(complete, found.values())) else 3


if __name__ == "__main__":
    raise SystemExit(main())
