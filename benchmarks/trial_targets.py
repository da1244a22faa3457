"""The functions of libraries that compute an operator of ours, other people's and our own: what check_libraries.py checks.

A function whose signature is an operator's is named as it stands; the others have an adapter under ``benchmarks/libraries``,
which maps arguments and does nothing else.
"""

from dataclasses import dataclass

LIBRARIES_FOLDER = "benchmarks/libraries"


@dataclass(frozen=True)
class Target:
    """One check.

    Attributes:
        function: as ``linverify check`` takes it.
        operator: with its parameters.
        options: further ones, of the function's documented claims and settings.
        builds: whether ``build(name)`` of its adapter compiles it beforehand.
    """

    function: str
    operator: str
    options: tuple[str, ...] = ()
    builds: bool = False


@dataclass(frozen=True)
class Library:
    """Targets by name, and the distribution whose version the record gives."""

    distribution: str
    targets: dict[str, Target]


def _adapted(module: str, function: str, operator: str, *options: str, builds: bool = False) -> Target:
    return Target(f"{LIBRARIES_FOLDER}/{module}.py::{function}", operator, options, builds)


_UNNORMALISED = ("--set", "normalize=False")
# fla divides by the normaliser plus 1e-10.
_NORMALISED = "normalized_linear_attention:eps=1e-10"


def _fla(module: str, function: str, operator: str, *options: str) -> Target:
    return Target(f"fla.ops.{module}:{function}", operator, options)


FLA = {
    "chunk_gla": _fla("gla", "chunk_gla", "gla"),
    "fused_recurrent_gla": _fla("gla", "fused_recurrent_gla", "gla"),
    "chunk_simple_gla": _fla("simple_gla", "chunk_simple_gla", "simple_gla"),
    "chunk_delta_rule": _fla("delta_rule", "chunk_delta_rule", "delta_rule"),
    "chunk_gated_delta_rule": _fla("gated_delta_rule", "chunk_gated_delta_rule", "gated_delta_rule"),
    "chunk_rwkv6": _fla("rwkv6", "chunk_rwkv6", "rwkv6"),
    "chunk_rwkv7": _fla("rwkv7", "chunk_rwkv7", "rwkv7"),
    "chunk_kda": _fla("kda", "chunk_kda", "kda"),
    "simple_gla_unguarded": Target("benchmarks/fla_guard_lifted.py::chunk_simple_gla", "simple_gla"),
    "gated_delta_rule_unguarded": Target("benchmarks/fla_guard_lifted.py::chunk_gated_delta_rule", "gated_delta_rule"),
}
"""The first ten, whose results are published."""

FLA_OTHERS = {
    "chunk_hgrn": _fla("hgrn", "chunk_hgrn", "hgrn"),
    "fused_recurrent_hgrn": _fla("hgrn", "fused_recurrent_hgrn", "hgrn"),
    "fused_recurrent_rwkv4": _adapted("fla_core", "fused_recurrent_rwkv4", "rwkv4"),
    "fused_recurrent_rwkv6": _fla("rwkv6", "fused_recurrent_rwkv6", "rwkv6"),
    "fused_recurrent_rwkv7": _fla("rwkv7", "fused_recurrent_rwkv7", "rwkv7"),
    "fused_recurrent_delta_rule": _fla("delta_rule", "fused_recurrent_delta_rule", "delta_rule"),
    "parallel_delta_rule": _fla("delta_rule.parallel", "parallel_delta_rule", "delta_rule"),
    "fused_recurrent_gated_delta_rule": _fla(
        "gated_delta_rule", "fused_recurrent_gated_delta_rule", "gated_delta_rule"
    ),
    "gated_delta_product": _fla("gated_delta_product", "chunk_gated_delta_product", "gated_delta_product"),
    "gated_delta_product_unguarded": Target(
        "benchmarks/fla_guard_lifted.py::chunk_gated_delta_product", "gated_delta_product"
    ),
    "fused_recurrent_kda": _fla("kda", "fused_recurrent_kda", "kda"),
    "fused_recurrent_simple_gla": _fla("simple_gla", "fused_recurrent_simple_gla", "simple_gla"),
    "parallel_simple_gla": _fla("simple_gla", "parallel_simple_gla", "simple_gla"),
    "fused_chunk_simple_gla": _fla("simple_gla", "fused_chunk_simple_gla", "simple_gla"),
    "chunk_retention": _fla("retention", "chunk_retention", "retention"),
    "parallel_retention": _fla("retention", "parallel_retention", "retention"),
    "fused_recurrent_retention": _fla("retention", "fused_recurrent_retention", "retention"),
    "fused_chunk_retention": _fla("retention", "fused_chunk_retention", "retention"),
    "chunk_linear_attn": _fla("linear_attn", "chunk_linear_attn", "linear_attention", *_UNNORMALISED),
    "fused_chunk_linear_attn": _fla("linear_attn", "fused_chunk_linear_attn", "linear_attention", *_UNNORMALISED),
    "fused_recurrent_linear_attn": _fla(
        "linear_attn", "fused_recurrent_linear_attn", "linear_attention", *_UNNORMALISED
    ),
    "normalized_chunk": _adapted("fla_core", "normalized_chunk", _NORMALISED),
    "normalized_fused_chunk": _adapted("fla_core", "normalized_fused_chunk", _NORMALISED),
    "normalized_fused_recurrent": _adapted("fla_core", "normalized_fused_recurrent", _NORMALISED),
    "chunk_lightning_attn": _fla("lightning_attn", "chunk_lightning_attn", "lightning_attention"),
    "fused_recurrent_lightning_attn": _fla("lightning_attn", "fused_recurrent_lightning_attn", "lightning_attention"),
    "chunk_dplr_delta_rule": _fla("generalized_delta_rule", "chunk_dplr_delta_rule", "dplr"),
    "fused_recurrent_dplr": _fla("generalized_delta_rule", "fused_recurrent_dplr_delta_rule", "dplr"),
    "chunk_iplr_delta_rule": _fla("generalized_delta_rule", "chunk_iplr_delta_rule", "iplr"),
    "fused_recurrent_iplr": _fla("generalized_delta_rule", "fused_recurrent_iplr_delta_rule", "iplr"),
    "parallel_based": _fla("based", "parallel_based", "based"),
    "fused_chunk_based": _fla("based", "fused_chunk_based", "based"),
    "parallel_rebased": _fla("rebased", "parallel_rebased", "rebased"),
    "parallel_attn": _fla("attn", "parallel_attn", "softmax_attention"),
    "chunk_ttt_linear": _adapted("fla_core", "chunk_ttt_linear", "ttt_linear"),
    "fused_chunk_ttt_linear": _adapted("fla_core", "fused_chunk_ttt_linear", "ttt_linear"),
}
"""Every other public function of fla-core that computes an operator of ours."""

_FP32 = ("--dtype", "fp32")

MLSTM = {
    name: _adapted("mlstm", name, "mlstm")
    for name in ("xl_chunk", "limit_chunk", "limit_headdim", "native_chunkwise", "native_parallel", "native_recurrent")
}
LIGHTNING = {"lightning_attn_func": _adapted("lightning_attention", "lightning_attn_func", "lightning_attention")}
# The decay itself is an argument: in 16 bits it would be another decay.
SCANS = {
    "scalar": _adapted("scans", "scalar", "hgrn", *_FP32),
    "warp": _adapted("scans", "warp", "hgrn", *_FP32, builds=True),
    "reference": _adapted("scans", "reference", "hgrn", *_FP32),
}
ATTENTION_GYM = {
    f"gym_{form}_{name}{more}": _adapted("attention_gym", f"{form}_{name}{more}", operator)
    for name, operator in (("kda", "kda"), ("gdn", "gated_delta_rule"))
    for form, more in (("recurrent", ""), ("chunk", "_reference"), ("chunk", ""))
}
FLASH_RWKV = {"flash_rwkv6": _adapted("rwkv_cuda", "flash_rwkv6", "rwkv6", builds=True)}
RWKV = {
    "rwkv6": _adapted("rwkv_cuda", "rwkv6", "rwkv6", builds=True),
    # exp(-exp(w)) of a w in 16 bits would be another decay
    "rwkv7": _adapted("rwkv_cuda", "rwkv7", "rwkv7", *_FP32, builds=True),
}
MAMBA = {
    "chunk_scan": _adapted("mamba", "chunk_scan", "mamba2"),
    "selective_scan": _adapted("mamba", "selective_scan", "mamba1", builds=True),
}
MAMBA_PY = {
    "mambapy_pscan": _adapted("mamba_py", "parallel_scan", "hgrn", *_FP32),
    "mambapy_selective_scan": _adapted("mamba_py", "selective_scan", "mamba1"),
}
CAUSAL_PRODUCT = {
    name: _adapted("causal_product", name, operator, *_FP32, builds=True)
    for name, operator in (
        ("causal_dot_product", "causal_product"),
        ("causal_linear_attention", "normalized_linear_attention"),
    )
}

LIBRARIES = {
    "fla": Library("fla-core", FLA),
    "fla-others": Library("fla-core", FLA_OTHERS),
    "mlstm": Library("mlstm-kernels", MLSTM),
    "lightning": Library("lightning-attn", LIGHTNING),
    "scan": Library("accelerated-scan", SCANS),
    "attn-gym": Library("attn-gym", ATTENTION_GYM),
    "flash-rwkv": Library("flash-rwkv", FLASH_RWKV),
    "rwkv": Library("rwkv", RWKV),
    "mamba": Library("mamba-ssm", MAMBA),
    "mambapy": Library("mambapy", MAMBA_PY),
    "causal-product": Library("pytorch-fast-transformers", CAUSAL_PRODUCT),
}
"""By name, as check_libraries.py takes them; flash-rwkv, rwkv, mamba and causal-product build CUDA code first."""


def _own(module: str, operators: str) -> dict[str, Target]:
    return {f"{module}_{name}": Target(f"linverify.impls.{module}:{name}", name) for name in operators.split()}


OWN = {
    **_own("triton_chunkwise", "gla simple_gla linear_attention retention lightning_attention"),
    **_own("triton_delta", "delta_rule gated_delta_rule kda gated_delta_product"),
    **_own("triton_attention", "softmax_attention"),
    **_own("cuda_rwkv6", "rwkv6"),
    **{
        f"cuda_{name}": Target(f"linverify.impls.cuda_{module}:{name}", operator)
        for name, module, operator in (
            ("one_block_per_head", "causal_product", "causal_product"),
            ("low_occupancy", "causal_product", "causal_product"),
            ("selective_scan", "selective_scan", "mamba1"),
        )
    },
    **_own(
        "triton_recurrent",
        "gla rwkv7 kda rwkv6 gated_delta_rule mamba2 delta_rule simple_gla retention linear_attention hgrn mamba1 dplr iplr"
        " hgrn2 rwkv5 gated_delta_product causal_product lightning_attention cosformer norm_attention performer"
        " normalized_linear_attention transnormer_llm",
    ),
}
"""The built-in kernels that a GPU runs."""
BUILT_IN = {"built-in": Library("linverify", OWN)}
