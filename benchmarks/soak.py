"""Soak: thousands of cases of a kernel that fails at random in ten ways, in one session.

Every case must get exactly one verdict; afterwards there may be no zombie, process, descriptor or piece of shared memory more
than before, and the session's memory must be flat.

    python benchmarks/soak.py [--cases 2000] [--markdown FILE]
"""

import argparse
import collections
import gc
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linverify import bench, registry
from linverify.binding import bind
from linverify.case import Case
from linverify.inquiry import evaluate
from linverify.runner import Runner
from linverify.shared import Shared
from linverify.target import parse

KERNEL = Path(__file__).resolve().with_name("soak_kernel.py")
HANG_SECONDS = 1.0
# References are remembered up to a bound, and every case here asks for a new one: a bound soon reached shows what else grows.
REMEMBERED = 3.0  # megabytes
WARM = 500  # cases before the first count: that memory and the one of results fill, modules are imported
FLAT = 0.001  # megabytes a case: less than any case would leave behind, were it kept


class Held(NamedTuple):
    """What this process and its children hold."""

    megabytes: float
    descriptors: int
    shared_memory: int
    living: int
    zombies: int


def held() -> Held:
    """Count now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    parents, states = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)], states[int(stat.parent.name)] = int(parent), state
    ours, found = {os.getpid()}, True
    while found:
        found = {p for p, parent in parents.items() if parent in ours} - ours
        ours |= found
    ours.discard(os.getpid())
    return Held(
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path("/dev/shm").iterdir())),
        sum(states[p] != "Z" for p in ours),
        sum(states[p] == "Z" for p in ours),
    )


def soak(cases: int) -> tuple[collections.Counter[str], Held, Held, int]:
    """Judge that many cases; (verdicts, held after WARM cases, held at the end, processes started)."""
    bench.HANG_SECONDS = HANG_SECONDS
    operator, law = registry.operator("gla"), registry.property_named("agreement")
    verdicts: collections.Counter[str] = collections.Counter()
    with Runner(parse(f"{KERNEL}::at_random"), device="cpu") as runner:
        runner.bind(bind(operator, runner.describe().functions[0]), operator)
        judge, answers = Shared(megabytes=REMEMBERED).of(operator, "cpu", {})
        tested = bench.Bench(runner, operator, judge, "cpu", {}, answers)
        before = held()
        for number in range(cases):
            case = Case("gla", B=1 + number % 2, T=1 + number % 7, H=1, K=4, V=6, gate="mild", seed=number)
            outcome = evaluate(tested, law, case)
            kind = outcome.failure.evidence.kind if outcome.failure else ""
            verdicts[f"{outcome.status}{f': {kind}' if kind else ''}"] += 1
            if number == WARM:
                runner.restart()
                before = held()
        runner.restart()
        time.sleep(0.2)
        return verdicts, before, held(), runner.starts


def main() -> int:
    """Print the counts; 1 where something was lost or left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    verdicts, before, after, starts = soak(options.cases)
    seconds = time.monotonic() - started
    lines = ["| verdict | cases |", "| --- | --- |", *(f"| {kind} | {n} |" for kind, n in verdicts.most_common())]
    lines += ["", f"| held | after {WARM} cases | after {options.cases} |", "| --- | --- | --- |"]
    lines += [f"| {name} | {a:.6g} | {b:.6g} |" for name, a, b in zip(Held._fields, before, after, strict=True)]
    lines += ["", f"{options.cases} cases, {sum(verdicts.values())} verdicts, {starts} processes, {seconds:.0f} s"]
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    flat = after.megabytes - before.megabytes < FLAT * (options.cases - WARM)
    fine = flat and sum(verdicts.values()) == options.cases and after[1:] == before[1:] and after.zombies == 0
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
