"""What becomes of a session when a kernel breaks the GPU: every fault of `fault_kernels_gpu.py` in turn. Needs a GPU.

python benchmarks/faults_gpu.py [--device cuda:0] [--patience SECONDS] [--shrink SECONDS] [--only NAME,...] [--markdown FILE]
"""

import argparse
import dataclasses
import importlib.util
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from linverify import bench
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.session import check
from linverify.silence import Silence

KERNELS = Path(__file__).resolve().with_name("fault_kernels_gpu.py")


def main() -> int:
    """Run the table; 1 where a fault has another outcome than expected, 3 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument(
        "--shrink", type=float, default=60.0, help="seconds for a smaller case; a hung one costs a new worker"
    )
    parser.add_argument("--only", help="names of kernels, with commas between; all without it")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("faults_gpu.py: torch sees no CUDA device here")
        return 3
    bench.HANG_SECONDS = options.patience
    PROFILES["quick"] = dataclasses.replace(PROFILES["quick"], cases=3, long_cases=0, shrink_seconds=options.shrink)
    sys.path.insert(0, str(KERNELS.parent))  # it imports its neighbour
    spec = importlib.util.spec_from_file_location("fault_kernels_gpu", KERNELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows, wrong = [], 0

    def outcome(name: str) -> tuple[str, str, str]:
        plan = Plan(
            f"{KERNELS}::{name}",
            "gla",
            device=options.device,
            properties=("agreement",),
            profile="quick",
            dtypes=("fp32",),
        )
        (result,) = check(plan, Silence())
        failure = result.properties[0].failure
        if failure is None:
            return str(result.properties[0].status), "", ""
        return failure.evidence.kind, f"T={failure.sizes['T']}", " ".join(failure.diagnosis.split())[:110]

    for name in options.only.split(",") if options.only else module.FAULTS:
        expected = module.FAULTS[name]
        free = torch.cuda.mem_get_info(options.device)[0]
        started = time.monotonic()
        kind, smallest, said = outcome(name)
        seconds = time.monotonic() - started
        print(f"{name}: {kind} {smallest} after {seconds:.0f} s", flush=True)  # should time be up before the rest
        survived = outcome("honest")[0] == "pass"
        lost = free - torch.cuda.mem_get_info(options.device)[0]
        fine = kind == expected and survived
        wrong += not fine
        rows.append(
            (
                name.replace("_", " "),
                kind,
                smallest,
                f"{seconds:.0f}",
                f"{lost / 2**20:.0f}",
                "yes" if survived else "NO",
                said,
            )
        )
        print(f"{'ok ' if fine else 'BAD'} " + "  ".join(rows[-1]), flush=True)
    heading = (
        "fault",
        "verdict",
        "smallest case",
        "seconds",
        "device memory lost, MB",
        "session goes on",
        "what was said",
    )
    if options.markdown:
        lines = ["| " + " | ".join(r) + " |" for r in (heading, ("---",) * len(heading), *rows)]
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
