"""Arguments that many operators share, with the spellings that libraries use for them.

Spellings are those of flash-linear-attention (``g``, ``gk``, ``w``, ``r``), RWKV, mamba and the papers' code. Within one
operator a spelling belongs to one argument; ``linverify.binding`` prefers the canonical name, then aliases in order.
"""

from types import MappingProxyType
from typing import Any

from linverify.operator import Array, Input, Sizes

QUERY = Input("q", ("B", "T", "H", "K"), "query", aliases=("query", "queries", "Q", "r", "receptance"))
KEY = Input("k", ("B", "T", "H", "K"), "key", aliases=("key", "keys", "K"))
VALUE = Input("v", ("B", "T", "H", "V"), "value", aliases=("value", "values", "V"))

_GATE_NAMES = ("log_decay", "log_g", "log_gate", "log_w", "log_alpha", "decay", "gate", "gates", "w", "alpha")
SCALAR_GATE = Input("g", ("B", "T", "H"), "log_gate", "g <= 0, natural log", aliases=_GATE_NAMES)
CHANNEL_GATE = Input("g", ("B", "T", "H", "K"), "log_gate", "g <= 0, natural log", aliases=("gk", *_GATE_NAMES))
STRENGTH = Input(
    "beta",
    ("B", "T", "H"),
    "strength",
    "0 <= beta and beta |k|^2 <= 2, usually below 1",
    aliases=("betas", "b", "beta_t"),
)
LOW_RANK_A = Input(
    "a", ("B", "T", "H", "K"), "low_rank_a", "-kappa, kappa of unit norm", aliases=("alpha", "neg_kappa", "kk_neg")
)
LOW_RANK_B = Input(
    "b", ("B", "T", "H", "K"), "low_rank_b", "kappa * eta, eta in (0, 1)", aliases=("beta", "kappa_eta", "kka")
)

PINS: MappingProxyType[str, Any] = MappingProxyType({"head_first": False, "reverse": False, "state_v_first": False})
"""Settings that fix the layout, the direction of time and the state's axes; passed where a signature has them."""

NORMALISED_OUTSIDE: MappingProxyType[str, Any] = MappingProxyType({**PINS, "use_qk_l2norm_in_kernel": False})
"""The same, and keys are used as given: unit norm is the caller's business."""


def group_of_head(sizes: Sizes) -> list[int]:
    """Which group each head reads, when H heads share G groups evenly: head h reads group h // (H / G)."""
    heads, groups = sizes["H"], sizes["G"]
    return [h // (heads // groups) for h in range(heads)]


def heads_from_groups(x: Array, sizes: Sizes) -> Array:
    """Repeat [B, T, G, ...] to [B, T, H, ...]; `x` itself where every head has its own group."""
    return x if sizes["G"] == sizes["H"] else x[:, :, group_of_head(sizes)]
