"""Defects that flash-linear-attention's threads report, looked for by name in fla-core as released. Needs a GPU.

    python benchmarks/fla_defects.py [--together 14] [--limit 60] [--stop 60] [--only 984 1274] [--json F.jsonl]

A crew of processes makes the attempts: some of the defects are illegal memory accesses. A line each, as they end:
``reproduced`` or ``not reproduced`` with numbers, ``refused`` with the library's words, ``not applicable here`` with the
reason. Numbers of threads are those of github.com/fla-org/flash-linear-attention.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import crew
from crew import Attempt

GDN = "fla.ops.gated_delta_rule"
LIFTED = "fla_guard_lifted"
# These change a kernel's configurations, or a switch, for all that comes after them.
CHANGES = ("issue_640", "issue_984", "repeated")


def _attempt(
    thread: str, what: str, function: str, *arguments: Any, module: str = "fla_attempts", **more: Any
) -> Attempt:
    alone = function in CHANGES or LIFTED in arguments
    return Attempt(thread, what, function, arguments, tuple(more.items()), module, alone)


def _gated(what: str, dtype: str, K: int, V: int, tile: int, warps: int) -> Attempt:
    return _attempt("640", f"{what}, tile {tile}, {warps} warps", "issue_640", dtype, K, V, tile, warps)


def _case(thread: str, what: str, case: str, module: str, name: str, **settings: Any) -> Attempt:
    return _attempt(thread, what, "operator_case", case, module, name, **settings)


ODD = "B1.T300.H2.K63.V65/bf16/gate=mild/state=normal/final_state=1/cotangent=both/scale=one"
LONG = "B1.T300.H2.K64.V64/bf16/cotangent=o"
STALE = "offsets overwritten in place, second call"
TAIL = "more tokens than the last offset"
ATTEMPTS = (
    _gated("gated delta rule, guard lifted, fp16, K = V = 100", "fp16", 100, 100, 64, 4),
    _gated("gated delta rule, guard lifted, fp16, K = V = 100", "fp16", 100, 100, 128, 4),
    _gated("gated delta rule, guard lifted, bf16, K = V = 64", "bf16", 64, 64, 64, 4),
    _attempt("984", "delta rule as shipped, bf16, T 256, K 64", "issue_984", "bf16", 256, 64, 0, 0),
    _attempt("984", "delta rule as shipped, fp16, T 256, K 128", "issue_984", "fp16", 256, 128, 0, 0),
    *(
        _attempt("984", f"4 warps, {stages} stages, {dtype}, T {T}, K {K}", "issue_984", dtype, T, K, 4, stages)
        for dtype, T, K, stages in (
            ("fp16", 64, 64, 2),
            ("fp16", 256, 64, 3),
            ("bf16", 256, 128, 4),
            ("fp16", 256, 128, 3),
        )
    ),
    _attempt("955", "causal_conv1d with cu_seqlens, two rows: dweight", "issue_955", module="fla_attempts_conv"),
    _attempt("836", "forgetting attention, packed, D = 100, fp16: dq", "issue_836", "fp16"),
    _attempt("836", "forgetting attention, packed, D = 100, bf16: dq", "issue_836", "bf16"),
    _attempt("1187", "MesaNet, values of 1", "issue_1187", 1.0),
    _attempt("1187", "MesaNet, values of 1000", "issue_1187", 1000.0),
    _attempt(
        "1228",
        "chunk_fwd_o, 8 warps, tile 128",
        "repeated",
        "fla.ops.common.chunk_o",
        "chunk_fwd_kernel_o",
        8,
        3,
        BK=128,
        BV=128,
    ),
    _attempt(
        "1228",
        "chunk_fwd_o, 8 warps, tile 32",
        "repeated",
        "fla.ops.common.chunk_o",
        "chunk_fwd_kernel_o",
        8,
        3,
        BK=32,
        BV=32,
    ),
    _attempt(
        "945",
        "states of the gated delta rule, 4 warps",
        "repeated",
        "fla.ops.common.chunk_delta_h",
        "chunk_gated_delta_rule_fwd_kernel_h_blockdim64",
        4,
        2,
        BV=64,
    ),
    _attempt("1274", f"{STALE}: chunk_gla", "issue_1274", "fla.ops.gla", "chunk_gla", "gla"),
    _attempt(
        "1274", f"{STALE}: chunk_delta_rule", "issue_1274", "fla.ops.delta_rule", "chunk_delta_rule", "delta_rule"
    ),
    _attempt(
        "1274", f"{STALE}: chunk_gated_delta_rule", "issue_1274", GDN, "chunk_gated_delta_rule", "gated_delta_rule"
    ),
    _attempt("1274", f"{STALE}: chunk_kda", "issue_1274", "fla.ops.kda", "chunk_kda", "kda"),
    _attempt("892", f"{TAIL}: chunk_gla", "issue_892", "fla.ops.gla", "chunk_gla", "gla"),
    _attempt("892", f"{TAIL}: chunk_delta_rule", "issue_892", "fla.ops.delta_rule", "chunk_delta_rule", "delta_rule"),
    _attempt(
        "892",
        f"{TAIL}: gated delta rule, guard lifted",
        "issue_892",
        LIFTED,
        "chunk_gated_delta_rule",
        "gated_delta_rule",
    ),
    _attempt("892", f"{TAIL}: chunk_kda", "issue_892", "fla.ops.kda", "chunk_kda", "kda"),
    _attempt("837", "PaTH with cu_seqlens, two rows", "issue_837"),
    _attempt(
        "1138",
        "causal_conv1d, dy with strides of 0: gradients",
        "short_or_expanded",
        32,
        module="fla_attempts_conv",
        expanded=True,
    ),
    _attempt(
        "1140",
        "causal_conv1d, 2 tokens for a width of 4: gradients",
        "short_or_expanded",
        2,
        module="fla_attempts_conv",
        expanded=False,
    ),
    _attempt(
        "found here",
        "causal_conv1d, a gradient into the first column of the final state",
        "short_or_expanded",
        32,
        module="fla_attempts_conv",
        expanded=False,
        first_column=True,
    ),
    _case(
        "862",
        "chunk_gated_delta_rule without a gate",
        "delta_rule/B1.T200.H2.K64.V64/bf16/cotangent=o",
        GDN,
        "chunk_gated_delta_rule",
        g=None,
    ),
    _attempt(
        "1262", "GLA, scale = 1 as an integer, odd widths", "issue_1262", f"gla/{ODD}", "fla.ops.gla", "chunk_gla"
    ),
    _attempt(
        "1262",
        "linear attention, scale = 1 as an integer, odd widths",
        "issue_1262",
        f"linear_attention/{ODD.replace('/gate=mild', '')}",
        "fla_attempts",
        "unnormalised",
    ),
    _case(
        "29",
        "RWKV-6, bf16: dw",
        "rwkv6/B4.T1024.H4.K64.V64/bf16/gate=production/cotangent=o",
        "fla.ops.rwkv6",
        "chunk_rwkv6",
    ),
    _case(
        "351",
        "RWKV-7 with an initial state",
        "rwkv7/B1.T128.H2.K64.V64/bf16/gate=mild/state=normal/final_state=1",
        "fla.ops.rwkv7",
        "chunk_rwkv7",
    ),
    _case("77", "RWKV-6, strong gates", f"rwkv6/{LONG}/gate=strong", "fla.ops.rwkv6", "chunk_rwkv6"),
    _case("122", "GLA, gates that reset", f"gla/{LONG}/gate=reset", "fla.ops.gla", "chunk_gla"),
    _case(
        "99",
        "gated delta rule, gates that reset, guard lifted",
        f"gated_delta_rule/{LONG}/gate=reset",
        LIFTED,
        "chunk_gated_delta_rule",
    ),
    _case(
        "104",
        "gated delta rule, gates of exactly one, guard lifted",
        f"gated_delta_rule/{LONG}/gate=none",
        LIFTED,
        "chunk_gated_delta_rule",
    ),
    _case(
        "20",
        "simple GLA, gates of minus infinity",
        "simple_gla/B1.T100.H2.K64.V64/bf16/gate=inf",
        "fla.ops.simple_gla",
        "fused_chunk_simple_gla",
    ),
)
ELSEWHERE = {
    "889": "a race of the TileLang kernel; TileLang is not installed",
    "913": "Blackwell; out-of-bounds reads are what `linverify check --sanitizer` looks for",
    "1229": "the mended form of 1228, for Blackwell",
    "547": "fused_chunk_gla was removed: it raises NotImplementedError",
    "736": "keys that are not normalised: beta |k|^2 above 2, outside the operator's domain",
    "537": "solve_tril of random triangular matrices: no operator, and outside every operator's domain",
    "215": "positive log gates, outside the operator's domain",
    "288": "Triton 3.3",
    "253": "Triton 3.2",
    "285": "a full pass against one with a past state: the law state_passing of every check",
    "111": "strong decays, as in 77, 99 and 122",
    "389": "gates of exactly one, as in 104",
    "623": "gv, a gate by value channel: no operator",
    "759": "activations: no operator",
    "850": "naive_chunk_linear_attn, a reference of its tests: right on a CPU at 64 and 128 tokens, others it refuses",
    "871": "a dy that is not contiguous in the convolution, as in 1138",
    "1142": "log-linear attention, mended by its pull request 1143 before 0.6.0",
    "806": "l2norm, no operator; the thread shows no failing input",
    "36414": "of vLLM: its own copy of the kernels on SM120",
}


def main() -> None:
    """Make all attempts, keep a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--together", type=int, default=14, help="processes at a time")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one attempt")
    parser.add_argument("--stop", type=float, default=600, help="seconds after which no attempt is begun")
    parser.add_argument("--only", nargs="+", default=[], metavar="THREAD")
    parser.add_argument("--json", type=Path, default=Path("fla_defects.jsonl"))
    parser.add_argument("--cache", default="", help="folder of compiled kernels")
    given = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        sys.exit("fla_defects.py needs a CUDA device and found none")

    def keep(line: dict[str, Any]) -> None:
        with given.json.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(crew.shown(line), flush=True)

    for thread, why in ELSEWHERE.items():
        if not given.only or thread in given.only:
            keep({"name": thread, "what": "not attempted", "status": "not applicable here", "numbers": why})
    todo = [a for a in ATTEMPTS if not given.only or a.name in given.only]
    crew.run(todo, keep, together=given.together, limit=given.limit, stop=given.stop, cache=given.cache)


if __name__ == "__main__":
    main()
