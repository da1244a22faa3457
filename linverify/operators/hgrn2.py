"""HGRN2: gated linear attention whose key is what the gate forgets, one minus the decay."""

from collections.abc import Mapping
from dataclasses import replace

from linverify.arguments import CHANNEL_GATE, PINS, QUERY, VALUE
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes

_I = replace(VALUE, aliases=("i", "x", *VALUE.aliases))
_G = replace(CHANNEL_GATE, aliases=("f", "log_f", "forget_gate", *CHANNEL_GATE.aliases))


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    # expm1, since 1 - exp(g) loses the digits of a small gate
    return Canonical(q=x["q"], k=-x["g"].expm1(), v=x["v"], log_decay=x["g"])


OPERATOR = Operator(
    name="hgrn2",
    aliases=("gated_linear_rnn_2", "hgru2"),
    summary="Gated linear attention with the key 1 - exp(g): a channel keeps a share of its state and takes in the rest.",
    equations="S_t = diag(exp(g_t)) S_{t-1} + (1 - exp(g_t)) v_t^T\no_t = scale * S_t^T q_t",
    source="Qin et al. 2024, arXiv:2404.07904, section 3.2 (outer-product state expansion); the gate as given",
    inputs=(QUERY, _I, _G),
    canonical=_canonical,
    # the gate is in the key too: no gauge of the keys, and a token of two gates is not two tokens
    identities=(COMMON - {"M13"}) | {"M12"},
    default_scale=1.0,
    hazards=(
        "1 - exp(g) loses the digits of a small gate: at -1e-5 three digits are left in float32 and none in bfloat16.",
        "The gate reaches the result through the decay and through the key; a gradient of one path looks right.",
        "A gate of zero writes nothing and a gate of minus infinity stores the value as it is: exchanged, both look plausible.",
    ),
    reductions=(
        Reduction(
            "gla",
            "always, with k = 1 - exp(g)",
            dict,
            lambda x: {"q": x["q"], "k": -x["g"].double().expm1(), "v": x["v"], "g": x["g"]},
        ),
    ),
    pins=PINS,
)
