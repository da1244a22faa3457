"""RWKV-7: a decay for each channel and a low-rank term b a^T that reads the undecayed state."""

from collections.abc import Mapping
from dataclasses import replace

from linverify.arguments import CHANNEL_GATE, KEY, LOW_RANK_A, LOW_RANK_B, PINS, QUERY, VALUE
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Operator, Reduction, Sizes

_R = replace(QUERY, aliases=("r", "receptance", *(a for a in QUERY.aliases if a not in ("r", "receptance"))))
_W = replace(
    CHANNEL_GATE,
    name="w",
    aliases=("log_w", "g", *(a for a in CHANNEL_GATE.aliases if a not in ("w", "log_w", "alpha"))),
)


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=x["w"], a=x["a"], b=x["b"], low_rank_on="undecayed")


def _delta_steps(x: Mapping[str, Array]) -> dict[str, Array]:
    """Restrict to a = -k, b = k, w = 0, with the unit key kappa for k: a delta step of strength one."""
    return {**x, "w": x["w"].new_zeros(x["w"].shape), "k": -x["a"], "b": -x["a"]}


OPERATOR = Operator(
    name="rwkv7",
    aliases=("wkv7", "goose"),
    summary="A gate for each channel and a removal b (a^T S) that reads the state before its decay; read after the write.",
    equations="S_t = diag(exp(w_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T\no_t = scale * S_t^T q_t",
    source="Peng et al. 2025, arXiv:2503.14456, section 4 (the generalised delta rule), without bonus, group norm and gate",
    inputs=(_R, _W, KEY, VALUE, LOW_RANK_A, LOW_RANK_B),
    canonical=_canonical,
    identities=COMMON | {"M3", "G1", "G2", "G3", "G4", "G6"},
    default_scale=1.0,
    hazards=(
        "The removal reads the undecayed state: its cumulative gate is that of the token before, the query's its own.",
        "Forms of one library differ in their default scale: 1 in one, K**-0.5 in the other.",
        "With gates below -1.39 a step a factored chunk of 64 overflows; the usual bound of -0.61 is what makes it safe.",
        "A removal strength that differs by channel is no symmetric contraction: products of transitions may grow for a while.",
        "The gradient of a is summed from the next token on, those of k and b from their own: off by one is easy.",
    ),
    reductions=(
        Reduction(
            "gla",
            "b = 0",
            lambda x: {**x, "b": x["b"].new_zeros(x["b"].shape)},
            lambda x: {"q": x["q"], "k": x["k"], "v": x["v"], "g": x["w"]},
        ),
        Reduction(
            "delta_rule",
            "w = 0, a = -k, b = k",
            _delta_steps,
            lambda x: {"q": x["q"], "k": x["k"], "v": x["v"], "beta": x["k"].new_ones(x["k"].shape[:-1])},
        ),
    ),
    pins=PINS,
)
