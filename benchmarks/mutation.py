"""The checker's own score on the CPU: `linverify selftest` on kernels with a backward pass by hand, forms, and others' code.

    python benchmarks/mutation.py RECORDS [--only NAME] [--jobs 16] [--seconds N] [--publish docs/published/mutation-cpu]

RECORDS is a folder with one record a target; what is recorded there is not judged again. Four processes work on a target, on as
many targets at once as --jobs allows. With --publish nothing is run: the records are collected in FILE.json and a table of them
in FILE.md, with what survived.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Without installation a child finds linverify in the checkout, too.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

from mutation_report import publish  # noqa: E402  # beside this file


@dataclass(frozen=True)
class Trial:
    """One target: how it is called, and at most how many mutants of it are judged."""

    name: str
    target: str
    words: tuple[str, ...] = ()
    mutants: int = 400


def _own(name: str) -> Trial:
    return Trial(name, f"benchmarks/originals/{name}.py")


def _fla(name: str, target: str, op: str) -> Trial:
    return Trial(f"fla-{name}", f"fla.ops.{target}", ("--op", op), 150)


def _zoo(name: str, op: str) -> Trial:
    return Trial(f"zoo-{name}", f"tests/zoo/kernels/{name}.py::{op}", ("--op", op), 150)


# Triton first: a mutant of it takes several times as long as one of torch code.
TRIALS = (
    Trial("my_gla", "examples/my_gla.py"),
    *(_zoo(f"triton_{op}", op) for op in ("gla", "simple_gla")),
    _zoo("triton_delta", "delta_rule"),
    *(_own(name) for name in ("simple_gla", "delta_rule", "rwkv6", "softmax", "mamba2")),
    Trial("recurrent-rwkv7", "linverify.impls.torch_recurrent:rwkv7"),
    Trial("chunkwise-gla", "linverify.impls.torch_chunkwise:gla"),
    Trial("chunkwise-gated_delta_rule", "linverify.impls.torch_chunkwise:gated_delta_rule"),
    Trial("naive-rwkv6", "linverify.impls.torch_naive:rwkv6"),
    _fla("gla", "gla.naive:naive_recurrent_gla", "gla"),
    _fla("simple_gla-chunk", "simple_gla.naive:naive_chunk_simple_gla", "simple_gla"),
    _fla("simple_gla", "simple_gla.naive:naive_recurrent_simple_gla", "simple_gla"),
    _fla("gated_delta_rule", "gated_delta_rule.naive:naive_recurrent_gated_delta_rule", "gated_delta_rule"),
    _fla("gated_delta_rule-chunk", "gated_delta_rule.naive:naive_chunk_gated_delta_rule", "gated_delta_rule"),
    _fla("kda", "kda.naive:naive_recurrent_kda", "kda"),
)
TEAM = 4


def judge(trial: Trial, records: Path, workers: int, end: float) -> int:
    """Run or go on with a trial until the time is over; the exit code, 0 where nothing was started."""
    left = end - time.monotonic()
    if left < 1:
        return 0
    record = records / f"{trial.name}.json"
    command = [sys.executable, "-m", "linverify", "selftest", trial.target, *trial.words]
    command += ["--profile", "quick", "--mutants", str(trial.mutants), "--json", str(record), "-n", str(workers)]
    command += ["--resume", str(record)] if record.is_file() else []
    command += ["--time", f"{left:.0f}"] if left < float("inf") else []
    done = subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(f"== {trial.name}: {' '.join(command[2:])}\n{done.stdout}", flush=True)
    return done.returncode


def main() -> int:
    """Judge or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--only", action="append")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--publish", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.publish:
        publish(options.records, options.publish)
        return 0
    options.records.mkdir(exist_ok=True)
    end = time.monotonic() + options.seconds
    trials = [t for t in TRIALS if not options.only or t.name in options.only]
    workers = min(options.jobs, TEAM)
    with ThreadPoolExecutor(max(1, options.jobs // TEAM)) as pool:
        codes = list(pool.map(lambda trial: judge(trial, options.records, workers, end), trials))
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
