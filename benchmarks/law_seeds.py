"""How dependably a law finds the bug that is planted for it, by seed.

    python benchmarks/law_seeds.py [--seeds 5] [--draws cpu|gpu] [--only NAME ...] [--profile quick]

The kernels are those of tests/test_properties.py, one for each law, in PyTorch on a CPU; each is asked its law alone, in all
dtypes. With --draws gpu the cases are those of a kernel that is compiled for a GPU, of which there are fewest. A line each as
they end: the law, the kernel, at how many seeds it was found, and of a law that missed it the status and cases of each seed.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linverify import examination
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.session import check
from linverify.silence import Silence
from linverify.strategies import strata
from tests.test_properties import BUGS, PLANTED, operator_of

# Asks every question in a process of its own.
DEAR = ("compile_cache",)


def compiled(*given: Any, **settings: Any) -> Any:
    """What is drawn for a kernel that is compiled, on a GPU."""
    return strata(*given, **{**settings, "device": "cuda:0", "backend": "triton"})


def outcome(law: str, kernel: str, seed: int) -> tuple[str, int]:
    """Status of a law at a seed, and how many cases it took."""
    target, laws = str(PLANTED / kernel), (law,)
    plan = Plan(target, operator_of(kernel), properties=laws, require=laws, profile="planted", seed=seed)
    (result,) = check(plan, Silence())
    (found,) = result.properties
    return str(found.status), found.cases


def main() -> None:
    """Ask every law, a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--profile", default="quick")
    given = parser.parse_args()
    if given.draws == "gpu":
        examination.strata = compiled
    # the first case that fails is enough
    PROFILES["planted"] = dataclasses.replace(PROFILES[given.profile], name="planted", shrink_seconds=0.0)
    for law, kernel, _ in BUGS:
        if law in DEAR or (given.only and law not in given.only):
            continue
        found = [outcome(law, kernel, seed) for seed in range(given.seeds)]
        hits = sum(status == "violation" for status, _ in found)
        missed = ", ".join(f"{status} ({cases})" for status, cases in found) if hits < len(found) else ""
        print(f"| {law} | `{kernel}` | {hits} of {len(found)} | {missed} |", flush=True)


if __name__ == "__main__":
    main()
