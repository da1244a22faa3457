"""The functions of other people's libraries that compute an operator of ours: what benchmarks/check_libraries.py checks.

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
    """

    function: str
    operator: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """Targets by name, and the distribution whose version the record gives."""

    distribution: str
    targets: dict[str, Target]


def _adapted(module: str, function: str, operator: str, *options: str) -> Target:
    return Target(f"{LIBRARIES_FOLDER}/{module}.py::{function}", operator, options)


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
    "gated_delta_product": _adapted("fla_core", "chunk_gated_delta_product", "gated_delta_product"),
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

LIBRARIES = {
    "fla": Library("fla-core", FLA),
    "fla-others": Library("fla-core", FLA_OTHERS),
}
