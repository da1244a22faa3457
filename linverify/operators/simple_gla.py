"""Simple gated linear attention: one scalar gate for each token and head."""

from collections.abc import Mapping

from linverify.arguments import KEY, PINS, QUERY, SCALAR_GATE, VALUE
from linverify.identities import COMMON, WRITES_ONLY_KEYS
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=x["g"][..., None])


OPERATOR = Operator(
    name="simple_gla",
    aliases=("simple_gated_linear_attention",),
    summary="Linear attention with a scalar log gate for each token and head, applied before the write.",
    equations="S_t = exp(g_t) S_{t-1} + k_t v_t^T\no_t = scale * S_t^T q_t",
    source="Dao and Gu 2024, arXiv:2405.21060, section 5 (scalar-times-identity state matrix); "
    "Yang et al. 2023, arXiv:2312.06635, section 4, with one gate for all channels",
    inputs=(QUERY, KEY, VALUE, SCALAR_GATE),
    canonical=_canonical,
    identities=COMMON | WRITES_ONLY_KEYS | {"M11", "M12", "G2", "G3", "G4", "G5", "G6", "G10"},
    hazards=(
        "A cumulative sum of gates in 16 bits stalls: small gates vanish against the sum.",
        "exp(G_i - G_j) evaluated above the diagonal overflows, and infinity times a masked zero is NaN.",
        "Long differences of cumulative sums lose digits; sums should start anew in each chunk.",
        "The gate gradient as a suffix sum of q dq - k dk cancels: its error grows with T while the gradient does not.",
    ),
    reductions=(
        Reduction(
            "linear_attention",
            "g = 0",
            lambda x: {**x, "g": x["g"].new_zeros(x["g"].shape)},
            lambda x: {n: x[n] for n in ("q", "k", "v")},
        ),
    ),
    pins=PINS,
)
