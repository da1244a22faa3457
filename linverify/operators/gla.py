"""Gated linear attention: a gate for each key channel."""

from collections.abc import Mapping

from linverify.arguments import CHANNEL_GATE, KEY, PINS, QUERY, VALUE
from linverify.identities import COMMON, WRITES_ONLY_KEYS
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=x["g"])


OPERATOR = Operator(
    name="gla",
    aliases=("gated_linear_attention",),
    summary="Linear attention with a log gate for each token, head and key channel, applied before the write.",
    equations="S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T\no_t = scale * S_t^T q_t",
    source="Yang et al. 2023, arXiv:2312.06635, section 4.1 (recurrence), section 4.3 (chunks and secondary chunks)",
    inputs=(QUERY, KEY, VALUE, CHANNEL_GATE),
    canonical=_canonical,
    identities=COMMON | WRITES_ONLY_KEYS | {"M11", "M12", "G2", "G3", "G4", "G5", "G6", "G10"},
    hazards=(
        "Scores factored as (q exp(G)) (k exp(-G)) overflow once a chunk's gates sum below -88 (-11 in fp16).",
        "Off-diagonal sub-chunks need a reference row between writer and reader so that both exponents stay at most zero.",
        "exp(G_i - G_j) evaluated above the diagonal overflows, and infinity times a masked zero is NaN.",
        "A cumulative sum of gates in 16 bits stalls: small gates vanish against the sum.",
        "The gate gradient as a suffix sum of q dq - k dk cancels, worse still if dq and dk were rounded to 16 bits before.",
    ),
    reductions=(
        Reduction(
            "simple_gla",
            "equal gates in all channels",
            lambda x: {**x, "g": x["g"][..., :1].expand_as(x["g"]).clone()},
            lambda x: {**x, "g": x["g"][..., 0].clone()},
        ),
        Reduction(
            "linear_attention",
            "g = 0",
            lambda x: {**x, "g": x["g"].new_zeros(x["g"].shape)},
            lambda x: {n: x[n] for n in ("q", "k", "v")},
        ),
    ),
    pins=PINS,
)
