"""IPLR: identity plus low rank, a removal b (a^T S) without any decay."""

from collections.abc import Mapping

from linverify.arguments import KEY, LOW_RANK_A, LOW_RANK_B, PINS, QUERY, VALUE
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], a=x["a"], b=x["b"])


OPERATOR = Operator(
    name="iplr",
    aliases=("iplr_delta_rule", "identity_plus_low_rank"),
    summary="Linear attention with a removal b (a^T S) at every token: transitions are the identity plus a matrix of rank one.",
    equations="S_t = S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T\no_t = scale * S_t^T q_t",
    source="Yang et al. 2024, arXiv:2406.06484, section 3, with a and b in the place of -beta k and k; "
    "the form of fla.ops.generalized_delta_rule.iplr",
    inputs=(QUERY, KEY, VALUE, LOW_RANK_A, LOW_RANK_B),
    canonical=_canonical,
    identities=COMMON | {"M3", "G1"},
    hazards=(
        "b a^T with a . b below -2 makes the recurrence grow without bound; nothing decays.",
        "The triangle (I - A_ab) is ill-conditioned for nearly equal keys; a Neumann series for its inverse loses all digits.",
        "a reads, b writes: exchanged, the result is right wherever a = -b.",
        "The gradient of a is summed from the next token on, those of k and b from their own: off by one is easy.",
    ),
    reductions=(
        Reduction(
            "linear_attention",
            "b = 0",
            lambda x: {**x, "b": x["b"].new_zeros(x["b"].shape)},
            lambda x: {n: x[n] for n in "qkv"},
        ),
        Reduction(
            "delta_rule",
            "a = -k, b = k",
            lambda x: {**x, "k": -x["a"], "b": -x["a"]},
            lambda x: {**{n: x[n] for n in "qkv"}, "beta": x["k"].new_ones(x["k"].shape[:-1])},
        ),
    ),
    pins=PINS,
)
