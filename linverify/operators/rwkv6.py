"""RWKV-6: a gate for each channel, a read before the write, and a bonus for the current token."""

from collections.abc import Mapping
from dataclasses import replace

from linverify.arguments import CHANNEL_GATE, KEY, PINS, QUERY, VALUE
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Input, Operator, Reduction, Sizes

_R = replace(QUERY, aliases=("r", "receptance", *(a for a in QUERY.aliases if a not in ("r", "receptance"))))
_W = replace(CHANNEL_GATE, name="w", aliases=("g", *(a for a in CHANNEL_GATE.aliases if a != "w")))
_U = Input("u", ("H", "K"), "bonus", aliases=("bonus", "time_faaaa", "time_first", "faaaa"))


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=x["w"], read="exclusive", bonus=x["u"])


def _constant(x: Mapping[str, Array]) -> dict[str, Array]:
    """Restrict to a bonus that makes up for the decay that its write is spared: powers of two, which every format holds."""
    u = x["u"].abs().gt(0.7).to(x["u"].dtype) + 1
    return {**x, "w": -u.to(x["w"].dtype).log().expand(x["w"].shape).clone(), "u": u}


def _as_gla(x: Mapping[str, Array]) -> dict[str, Array]:
    """The query of the exclusive read, times exp(-w), reads the state after its decay and the write in full."""
    return {"q": x["q"].double() * x["u"].double(), "k": x["k"], "v": x["v"], "g": x["w"]}


OPERATOR = Operator(
    name="rwkv6",
    aliases=("wkv6", "finch"),
    summary="A gate for each channel; the query reads the state before the current write and the write through a bonus u.",
    equations="o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t\nS_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T",
    source="Peng et al. 2024, arXiv:2404.05892, section 4 (Finch), without group norm and output gate",
    inputs=(_R, KEY, VALUE, _W, _U),
    canonical=_canonical,
    identities=COMMON | {"M3", "M12", "G2", "G3", "G4", "G5", "G6"},
    hazards=(
        "Readers are decayed up to the token before, writers up to their own: the two cumulative sums differ by one gate.",
        "Strong gates (below -2.7 a step) overflow a factored chunk of 32 tokens.",
        "The last gate touches the final state alone; a backward pass that ignores the state's gradient leaves it without one.",
        "The bonus gradient sums over batch and time; without fp32 atomics or a second pass it loses digits or is racy.",
        "The argument is the log decay itself, not omega with w = -exp(omega).",
    ),
    reductions=(
        Reduction("gla", "w constant, 0 or -log 2 by channel, and u = exp(-w)", _constant, _as_gla),
        Reduction(
            "linear_attention",
            "w = 0 and u = 1",
            lambda x: {**x, "w": x["w"].new_zeros(x["w"].shape), "u": x["u"].new_ones(x["u"].shape)},
            lambda x: {n: x[n] for n in ("q", "k", "v")},
        ),
    ),
    pins=PINS,
)
