"""Other people's functions in little time: a few judged calls to each, made by a crew of processes that import once.

    python benchmarks/short_trial.py --out DIR [--library fla fla-others ...] [--only NAME ...] [--dtype bf16 fp32]
                                     [--together 14] [--stop 75] [--scripts [STEM ...]] [--no-functions]

A line each as they end, kept in DIR/short.jsonl. No search, no shrinking, no law beyond the results, the contract, packed
sequences and refilled offsets: a pass says less than one of benchmarks/check_libraries.py. With --scripts the reproducers of
docs/published run, too.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import crew
from crew import Attempt
from trial_targets import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]
# Functions that refuse the usual widths of K = 64, V = 32.
WIDTHS = {
    "fused_chunk_based": (16, 32),
    "gym_chunk_kda": (128, 128),
    "gym_chunk_gdn": (128, 128),
    "xl_chunk": (64, 64),  # at 64 and 32 its compiler (Triton 3.6) fails
}
# Reproducers whose library is built by an adapter first.
ADAPTERS = {"fast_transformers_strides": "causal_product"}
# What was seen or read to be wrong comes first, then what no other run has covered.
FIRST = (
    *("chunk_hgrn", "fused_recurrent_rwkv6", "fused_recurrent_rwkv4", "fused_recurrent_hgrn", "chunk_rwkv6"),
    *("chunk_gla", "chunk_delta_rule", "chunk_kda", "fused_chunk_based", "parallel_based", "parallel_rebased"),
    *("flash_rwkv6", "lightning_attn_func", "xl_chunk", "limit_chunk", "limit_headdim", "chunk_scan"),
    *("gated_delta_product_unguarded", "chunk_ttt_linear", "chunk_linear_attn", "normalized_chunk", "chunk_retention"),
)


def attempts(names: list[str], dtypes: list[str], device: str) -> list[Attempt]:
    """All functions in the first dtype, then in the next."""
    ordered = sorted(names, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))
    found = []
    for dtype in dtypes:
        for name in ordered:
            options = next(t.options for x in LIBRARIES.values() for n, t in x.targets.items() if n == name)
            if "--dtype" in options and dtype not in options and dtype != dtypes[0]:
                continue
            asked = "fp32" if "--dtype" in options else dtype
            K, V = WIDTHS.get(name, (64, 32))
            # one module of that file lifts a guard for its whole process
            alone = name.endswith("_unguarded")
            settings = (("device", device),)
            found.append(
                Attempt(name, f"{asked}, K {K}, V {V}", "trial", (name, asked, K, V), settings, "short_cases", alone)
            )
    return found


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--library", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--no-functions", action="store_true", help="reproducers only")
    parser.add_argument("--dtype", nargs="+", default=["bf16"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--together", type=int, default=14, help="processes at a time")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one function")
    parser.add_argument("--stop", type=float, default=600, help="seconds after which nothing is begun")
    parser.add_argument(
        "--scripts", nargs="*", metavar="STEM", help="run these reproducers first, all where none is named"
    )
    parser.add_argument("--cache", default="", help="folder of compiled kernels")
    given = parser.parse_args()
    if given.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    known = [n for library in given.library for n in LIBRARIES[library].targets]
    if unknown := set(given.only) - set(known):
        parser.error(f"no such function: {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    names = [n for n in known if (not given.only or n in given.only) and not given.no_functions]
    todo = attempts(names, given.dtype, given.device)
    if given.scripts is not None:
        files = sorted((ROOT / "docs" / "published" / "reproducers").glob("*.py"))
        if missing := set(given.scripts) - {f.stem for f in files}:
            parser.error(f"no such reproducer: {', '.join(sorted(missing))}")
        asked = [(f, ADAPTERS.get(f.stem, "")) for f in files if not given.scripts or f.stem in given.scripts]
        todo = [
            Attempt(f.stem, "reproducer", "script", (str(f), a), (), "short_cases", bool(a)) for f, a in asked
        ] + todo

    def keep(line: dict[str, Any]) -> None:
        with (given.out / "short.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(crew.shown(line), flush=True)

    crew.run(todo, keep, together=given.together, limit=given.limit, stop=given.stop, cache=given.cache)


if __name__ == "__main__":
    main()
