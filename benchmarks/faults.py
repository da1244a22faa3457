"""What becomes of a session when a kernel breaks down: every fault of `fault_kernels.py` in turn, in one session.

Each kernel is right up to four tokens and breaks down beyond. For each fault: the verdict, the smallest case that does it,
how long it took, which processes it left, and whether the session goes on: a kernel without fault is checked after each.

    python benchmarks/faults.py [--only NAME] [--patience SECONDS] [--markdown FILE]

A hang is declared after 60 s in a check; here after `--patience`, 3 by default, for the table's sake.
"""

import argparse
import dataclasses
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linverify import bench, processes
from linverify.plan import Listener, Plan
from linverify.profile import PROFILES
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import Status

KERNELS = Path(__file__).resolve().with_name("fault_kernels.py")


class Killer(Listener):
    """Kills the worker from outside, once, as soon as the first case is through."""

    def __init__(self, whom: str) -> None:
        self.whom, self.done = whom, False

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:  # noqa: ARG002
        """Kill."""
        if not self.done:
            self.done = True
            pids = [p for p, name in children() if name == self.whom]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


def children() -> list[tuple[int, str]]:
    """Descendants of this process that live: (process id, "server", "host" or "runner" by depth)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state not in "ZX":
            parents[int(stat.parent.name)] = int(parent)
    found = []
    for pid in parents:
        depth, at = 0, pid
        while at in parents and at != os.getpid():
            at, depth = parents[at], depth + 1
        if at == os.getpid() and depth:
            found.append((pid, {1: "server", 2: "host"}.get(depth, "runner")))
    return found


def outcome(name: str, listener: Listener) -> tuple[str, str, str]:
    """(verdict, smallest case, what was said) of one fault."""
    (result,) = check(
        Plan(f"{KERNELS}::{name}", "gla", properties=("agreement",), profile="quick", dtypes=("fp32",)), listener
    )
    (law,) = result.properties
    if law.failure is not None:
        sizes = law.failure.sizes
        smallest = " ".join(f"{a}={sizes[a]}" for a in "BTH")
        return law.failure.evidence.kind, smallest, law.failure.diagnosis
    if result.refusals:
        return "refused", "", f"{law.status}: {result.refusals[0].kind}: {result.refusals[0].message}"
    return law.status, "", ""


def main() -> int:
    """Run the table; 1 where a fault has another outcome than expected, or the session did not survive it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append")
    parser.add_argument("--patience", type=float, default=3.0)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    # A runaway allocation should not fill half of a large machine for the sake of a table.
    os.environ.setdefault("LINVERIFY_WORKER_BYTES", str(1 << 29))
    quick = PROFILES["quick"]
    PROFILES["quick"] = dataclasses.replace(quick, cases=3, long_cases=0, shrink_seconds=60.0)
    spec = importlib.util.spec_from_file_location("fault_kernels", KERNELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked = [(name, expected, Silence()) for name, expected in module.FAULTS.items()]
    asked += [(f"honest ({whom} killed from outside)", "crash", Killer(whom)) for whom in ("runner", "host", "server")]
    rows, wrong = [], 0
    for name, expected, listener in asked:
        if options.only and name not in options.only:
            continue
        bench.HANG_SECONDS = options.patience if expected == "hang" else 60.0
        started = time.monotonic()
        verdict, smallest, said = outcome(name.partition(" ")[0], listener)
        seconds = time.monotonic() - started
        survived = outcome("honest", Silence())[0] is Status.PASS
        deadline = time.monotonic() + 5
        while (left := [p for p, kind in children() if kind != "server"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        fine = verdict == (expected or Status.PASS) and survived and not left
        if smallest and not name.startswith("honest") and "T=5" not in smallest.split():
            fine = False
        wrong += not fine
        row = (
            name.replace("_", " "),
            str(verdict),
            smallest,
            f"{seconds:.1f}",
            str(len(left)),
            "yes" if survived else "NO",
        )
        rows.append((*row, " ".join(said.split())[:110].replace("|", "/")))
        print(f"{'ok ' if fine else 'BAD'} " + "  ".join(rows[-1]), flush=True)
    print(f"{len(rows)} faults, {len(rows) - wrong} as expected")
    if options.markdown:
        heading = ("fault", "verdict", "smallest case", "seconds", "processes left", "session goes on", "what was said")
        lines = ["| " + " | ".join(r) + " |" for r in (heading, ("---",) * len(heading), *rows)]
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    processes._close_servers()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
