"""Check flash-linear-attention's kernels on a GPU and keep what came out: console text, JSON and a table of times.

    python benchmarks/check_fla.py --out DIR [--profile standard] [--workers 1] [--together 4]
                                   [--only chunk_gla,chunk_kda] [--seconds 300]

The first target runs twice, alone, for the times with a cold and a warm compile cache; the others share the GPU.
Needs fla-core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TARGETS = {
    "chunk_gla": ("fla.ops.gla:chunk_gla", "gla"),
    "fused_recurrent_gla": ("fla.ops.gla:fused_recurrent_gla", "gla"),
    "chunk_simple_gla": ("fla.ops.simple_gla:chunk_simple_gla", "simple_gla"),
    "chunk_delta_rule": ("fla.ops.delta_rule:chunk_delta_rule", "delta_rule"),
    "chunk_gated_delta_rule": ("fla.ops.gated_delta_rule:chunk_gated_delta_rule", "gated_delta_rule"),
    "chunk_rwkv6": ("fla.ops.rwkv6:chunk_rwkv6", "rwkv6"),
    "chunk_rwkv7": ("fla.ops.rwkv7:chunk_rwkv7", "rwkv7"),
    "chunk_kda": ("fla.ops.kda:chunk_kda", "kda"),
    "simple_gla_unguarded": ("benchmarks/fla_guard_lifted.py::chunk_simple_gla", "simple_gla"),
    "gated_delta_rule_unguarded": ("benchmarks/fla_guard_lifted.py::chunk_gated_delta_rule", "gated_delta_rule"),
}
# Every other public function that computes an operator of ours.
UNNORMALISED = ("--set", "normalize=False")
OTHERS = {
    "fused_recurrent_rwkv6": ("fla.ops.rwkv6:fused_recurrent_rwkv6", "rwkv6"),
    "fused_recurrent_rwkv7": ("fla.ops.rwkv7:fused_recurrent_rwkv7", "rwkv7"),
    "fused_recurrent_delta_rule": ("fla.ops.delta_rule:fused_recurrent_delta_rule", "delta_rule"),
    "fused_recurrent_gated_delta_rule": (
        "fla.ops.gated_delta_rule:fused_recurrent_gated_delta_rule",
        "gated_delta_rule",
    ),
    "fused_recurrent_kda": ("fla.ops.kda:fused_recurrent_kda", "kda"),
    "fused_recurrent_simple_gla": ("fla.ops.simple_gla:fused_recurrent_simple_gla", "simple_gla"),
    "parallel_simple_gla": ("fla.ops.simple_gla:parallel_simple_gla", "simple_gla"),
    "fused_chunk_simple_gla": ("fla.ops.simple_gla:fused_chunk_simple_gla", "simple_gla"),
    "chunk_retention": ("fla.ops.retention:chunk_retention", "retention"),
    "parallel_retention": ("fla.ops.retention:parallel_retention", "retention"),
    "fused_recurrent_retention": ("fla.ops.retention:fused_recurrent_retention", "retention"),
    "fused_chunk_retention": ("fla.ops.retention:fused_chunk_retention", "retention"),
    "chunk_linear_attn": ("fla.ops.linear_attn:chunk_linear_attn", "linear_attention", *UNNORMALISED),
    "fused_chunk_linear_attn": ("fla.ops.linear_attn:fused_chunk_linear_attn", "linear_attention", *UNNORMALISED),
    "fused_recurrent_linear_attn": (
        "fla.ops.linear_attn:fused_recurrent_linear_attn",
        "linear_attention",
        *UNNORMALISED,
    ),
    "chunk_lightning_attn": ("fla.ops.lightning_attn:chunk_lightning_attn", "lightning_attention"),
    "fused_recurrent_lightning_attn": ("fla.ops.lightning_attn:fused_recurrent_lightning_attn", "lightning_attention"),
    "chunk_dplr_delta_rule": ("fla.ops.generalized_delta_rule:chunk_dplr_delta_rule", "dplr"),
    "fused_recurrent_dplr": ("fla.ops.generalized_delta_rule:fused_recurrent_dplr_delta_rule", "dplr"),
    "chunk_iplr_delta_rule": ("fla.ops.generalized_delta_rule:chunk_iplr_delta_rule", "iplr"),
    "fused_recurrent_iplr": ("fla.ops.generalized_delta_rule:fused_recurrent_iplr_delta_rule", "iplr"),
    "chunk_gated_delta_product": ("fla.ops.gated_delta_product:chunk_gated_delta_product", "gated_delta_product"),
    "chunk_hgrn": ("fla.ops.hgrn:chunk_hgrn", "hgrn"),
    "fused_recurrent_hgrn": ("fla.ops.hgrn:fused_recurrent_hgrn", "hgrn"),
    "parallel_based": ("fla.ops.based:parallel_based", "based"),
    "fused_chunk_based": ("fla.ops.based:fused_chunk_based", "based"),
    "parallel_rebased": ("fla.ops.rebased:parallel_rebased", "rebased"),
    "parallel_attn": ("fla.ops.attn:parallel_attn", "softmax_attention"),
    "chunk_ttt_linear": ("fla.ops.ttt:chunk_ttt_linear", "ttt_linear"),
    "fused_chunk_ttt_linear": ("fla.ops.ttt:fused_chunk_ttt_linear", "ttt_linear"),
}
ALL = {**TARGETS, **OTHERS}


def check(name: str, out: Path, options: Sequence[str], cache: str, tag: str = "") -> str:
    """Run one check in a process of its own; return one line about it."""
    target, op, *more = ALL[name]
    record = out / f"{name}{tag}.json"
    command = [sys.executable, "-m", "linverify", "check", target, "--op", op, "--json", str(record), *more, *options]
    start = time.perf_counter()
    env = {**os.environ, "TRITON_CACHE_DIR": cache, "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    wall = time.perf_counter() - start
    (out / f"{name}{tag}.txt").write_text(done.stdout + done.stderr)
    line = f"{name}{tag:8} exit {done.returncode} wall {wall:6.1f} s"
    if record.exists():
        result = json.loads(record.read_text())["results"][0]
        asked = sum(p["cases"] for p in result["properties"])
        broken = [p["name"] for p in result["properties"] if p["status"] == "violation"]
        seconds = {k: round(v, 1) for k, v in result.get("seconds", {}).items()}
        line += f" {result['verdict']} judged {asked} broken {broken} {seconds}"
    return line


def main() -> None:
    """Check all, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--workers", type=int, default=1, help="of each check: its option -n")
    parser.add_argument("--together", type=int, default=4, help="checks at a time, after the first")
    parser.add_argument("--only", default=",".join(TARGETS), help="names, or 'others' for all beyond the first ten")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--once", action="store_true", help="no target runs alone, twice")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = list(OTHERS) if given.only == "others" else given.only.split(",")
    options = ["--profile", given.profile, "--time", str(given.seconds), "-n", str(given.workers)]
    with tempfile.TemporaryDirectory() as cache:
        if not given.once:
            first = names.pop(0)
            for tag in ("", "-warm"):
                print(check(first, given.out, options, cache, tag), flush=True)
        with ThreadPoolExecutor(given.together) as pool:
            for line in pool.map(lambda n: check(n, given.out, options, cache), names):
                print(line, flush=True)


if __name__ == "__main__":
    main()
