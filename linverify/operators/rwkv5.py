"""RWKV-5: a constant decay for each channel, a read before the write, and a bonus for the current token."""

from collections.abc import Mapping
from dataclasses import replace

from linverify.arguments import KEY, PINS, QUERY, VALUE
from linverify.draws import uniform
from linverify.identities import COMMON
from linverify.operator import Array, Canonical, Input, Operator, Reduction, Sizes

_R = replace(QUERY, aliases=("r", "receptance", *(a for a in QUERY.aliases if a not in ("r", "receptance"))))
_W = Input(
    "w",
    ("H", "K"),
    "log_rate",
    "real; the decay is exp(-exp(w))",
    aliases=("time_decay", "decay", "omega"),
    draw=uniform(-6.0, 1.0),
)
_U = Input("u", ("H", "K"), "bonus", aliases=("bonus", "time_faaaa", "time_first", "faaaa"))


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    return Canonical(q=x["q"], k=x["k"], v=x["v"], log_decay=-x["w"].exp()[None, None], read="exclusive", bonus=x["u"])


def _as_rwkv6(x: Mapping[str, Array]) -> dict[str, Array]:
    """Spell the inputs as those of rwkv6, the constant decay at every token."""
    decay = -x["w"].double().exp()
    return {**{n: x[n] for n in "qkv"}, "w": decay[None, None].expand(x["q"].shape).clone(), "u": x["u"]}


OPERATOR = Operator(
    name="rwkv5",
    aliases=("wkv5", "eagle"),
    summary="A constant decay of each channel; the query reads the state before the current write and the write through u.",
    equations="o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t\nS_t = diag(exp(-exp(w))) S_{t-1} + k_t v_t^T",
    source="Peng et al. 2024, arXiv:2404.05892, section 4 (Eagle), without group norm and output gate",
    inputs=(_R, KEY, VALUE, _W, _U),
    canonical=_canonical,
    # no gate is an input: no token leaves the state alone
    identities=(COMMON | {"M3", "G5"}) - {"M10", "X1"},
    default_scale=1.0,
    hazards=(
        "The argument w is mapped twice, exp(-exp(w)); libraries take w, -exp(w) or the decay itself.",
        "The decay's gradient sums over batch and time; in 16 bits, or with atomics, it loses digits or is racy.",
        "The bonus stands in the place of the own write: with both, or with neither, early tokens look right.",
        "A decay applied before the read instead of after it is off by one token.",
    ),
    reductions=(Reduction("rwkv6", "always, with the decay at every token", dict, _as_rwkv6),),
    pins=PINS,
)
