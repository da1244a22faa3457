"""Kimi delta attention: a decay for each key channel, then a delta step on the decayed state."""

from collections.abc import Mapping

from linverify.arguments import CHANNEL_GATE, KEY, NORMALISED_OUTSIDE, QUERY, STRENGTH, VALUE
from linverify.identities import COMMON, DELTA
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=x["g"], beta=x["beta"][..., None])


OPERATOR = Operator(
    name="kda",
    aliases=("kimi_delta_attention", "kimi_linear"),
    summary="The delta rule on a state that a log gate of each key channel has decayed just before.",
    equations="P_t = diag(exp(g_t)) S_{t-1}\nS_t = P_t + beta_t k_t (v_t - P_t^T k_t)^T\no_t = scale * S_t^T q_t",
    source="Kimi team 2025, arXiv:2510.26692, section 3",
    inputs=(QUERY, KEY, VALUE, CHANNEL_GATE, STRENGTH),
    canonical=_canonical,
    identities=COMMON | DELTA | {"M11", "M12", "G6"},
    hazards=(
        "Factored as (k exp(G)) (k exp(-G)), scores overflow once gates sum below -88: at -5 a step after 16 tokens.",
        "The removal reads the decayed state, channel by channel.",
        "The gate gradient as a suffix sum needs write and removal parts of dk apart and cancels over long sequences.",
        "The triangle's inverse in 16 bits or tf32 loses digits in proportion to its condition.",
    ),
    unit_keys=True,
    reductions=(
        Reduction(
            "gated_delta_rule",
            "equal gates in all channels",
            lambda x: {**x, "g": x["g"][..., :1].expand_as(x["g"]).clone()},
            lambda x: {**x, "g": x["g"][..., 0].clone()},
        ),
        Reduction(
            "delta_rule",
            "g = 0",
            lambda x: {**x, "g": x["g"].new_zeros(x["g"].shape)},
            lambda x: {n: x[n] for n in ("q", "k", "v", "beta")},
        ),
    ),
    pins={**NORMALISED_OUTSIDE, "use_gate_in_kernel": False, "use_beta_sigmoid_in_kernel": False},
)
