"""DPLR: diagonal plus low rank, a gate for each channel and a removal b (a^T S) that reads the undecayed state."""

from collections.abc import Mapping
from dataclasses import replace

from linverify.arguments import CHANNEL_GATE, KEY, LOW_RANK_A, LOW_RANK_B, PINS, QUERY, VALUE
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes

# alpha is the removal's here
_G = replace(CHANNEL_GATE, aliases=tuple(a for a in CHANNEL_GATE.aliases if a != "alpha"))


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], a=x["a"], b=x["b"], log_decay=x["g"], low_rank_on="undecayed")


def _resetting(x: Mapping[str, Array]) -> dict[str, Array]:
    """Restrict to gates of 0 and -256 and to a = -exp(g) k / beta, b = k with k = beta kappa, beta one half.

    Other gates would make exp(g) kappa inexact in the inputs' format.
    """
    reset = x["q"] > 1
    kappa = -x["a"]
    return {
        **x,
        "g": x["g"].new_zeros(x["g"].shape).masked_fill(reset, -256.0),
        "k": kappa / 2,
        "a": x["a"].masked_fill(reset, 0.0),
        "b": kappa / 2,
    }


def _as_kda(x: Mapping[str, Array]) -> dict[str, Array]:
    beta = x["k"].new_full(x["k"].shape[:-1], 0.5)
    return {"q": x["q"], "k": 2 * x["k"], "v": x["v"], "g": x["g"], "beta": beta}


OPERATOR = Operator(
    name="dplr",
    aliases=("dplr_delta_rule", "generalized_delta_rule"),
    summary="A gate for each channel and a removal b (a^T S) on the undecayed state; the frame of KDA and RWKV-7.",
    equations="S_t = diag(exp(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T\no_t = scale * S_t^T q_t",
    source="Peng et al. 2025, arXiv:2503.14456, section 4 (the generalised delta rule); "
    "Kimi team 2025, arXiv:2510.26692, section 3 (KDA as a case of it)",
    inputs=(QUERY, KEY, VALUE, LOW_RANK_A, LOW_RANK_B, _G),
    canonical=_canonical,
    identities=COMMON | {"M3", "G1", "G2", "G3", "G4", "G6"},
    hazards=(
        "The removal reads the undecayed state: its cumulative gate is that of the token before, the query's its own.",
        "Factored scores overflow once a chunk's gates sum below -88; the removal doubles the number of such products.",
        "Two removals of one library differ in what they read; to write KDA this way, a must carry exp(g).",
        "The triangle (I - A_ab) in 16 bits or tf32 loses digits in proportion to its condition.",
        "The gradient of a is summed from the next token on, those of k and b from their own: off by one is easy.",
    ),
    reductions=(
        Reduction(
            "rwkv7", "always", dict, lambda x: {**{n: x[n] for n in "q"}, "w": x["g"], **{n: x[n] for n in "kvab"}}
        ),
        Reduction(
            "iplr",
            "g = 0",
            lambda x: {**x, "g": x["g"].new_zeros(x["g"].shape)},
            lambda x: {n: x[n] for n in "qkvab"},
        ),
        Reduction(
            "gla",
            "b = 0",
            lambda x: {**x, "b": x["b"].new_zeros(x["b"].shape)},
            lambda x: {n: x[n] for n in "qkvg"},
        ),
        Reduction("kda", "g of 0 or -256, a = -exp(g) k / beta, b = k, k = beta kappa", _resetting, _as_kda),
    ),
    pins=PINS,
)
