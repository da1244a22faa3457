"""Where the time of a quick check goes on the CPU: the kernel's process, the reference, the judge; by part and by property.

python benchmarks/quick_cpu.py [TARGET]            linverify.impls.torch_chunkwise:gla by default
"""

import argparse
import sys
import time
from pathlib import Path

from linverify.silence import Silence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linverify.plan import Plan
from linverify.session import check
from linverify.verdict import TargetResult


def lines(result: TargetResult, wall: float) -> list[str]:
    """The parts, then the properties, slowest first."""
    cases = max(1, result.cases)
    accounted = {name: seconds for name, seconds in result.seconds.items() if name != "total"}
    found = [
        f"{result.target}: {result.verdict}, {result.cases} cases in {wall:.1f} s, {1e3 * wall / cases:.0f} ms a case",
        "",
    ]
    for name, seconds in {**accounted, "everything else": wall - sum(accounted.values())}.items():
        found.append(
            f"  {name:18} {seconds:7.2f} s  {100 * seconds / wall:5.1f} %  {1e3 * seconds / cases:7.1f} ms a case"
        )
    found.append("")
    slowest = sorted((p for p in result.properties if p.cases), key=lambda p: -p.seconds)
    for p in slowest:
        each = f"{p.cases:4} cases {p.seconds:7.2f} s {1e3 * p.seconds / p.cases:7.0f} ms a case"
        found += [f"  {p.name:26} {p.status.value:10} {each}"]
    return found


def main() -> None:
    """Time one session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="linverify.impls.torch_chunkwise:gla")
    parser.add_argument("--op", default=None)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    results = check(Plan(options.target, operator=options.op, profile=options.profile, seed=options.seed), Silence())
    wall = time.perf_counter() - start
    for result in results:
        print("\n".join(lines(result, wall if len(results) == 1 else result.seconds["total"])))


if __name__ == "__main__":
    main()
