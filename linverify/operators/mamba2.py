"""Mamba-2 (state-space duality): a scalar decay exp(dt A), values weighted by dt, keys shared by groups of heads."""

from collections.abc import Mapping

from linverify.arguments import PINS, heads_from_groups
from linverify.identities import COMMON, WRITES_ONLY_KEYS
from linverify.operator import Array, Canonical, Input, Operator, Reduction, Sizes


def _canonical(x: Mapping[str, Array], sizes: Sizes) -> Canonical:
    return Canonical(
        q=heads_from_groups(x["C"], sizes),
        k=heads_from_groups(x["B"], sizes),
        v=x["dt"][..., None] * x["x"],
        log_decay=(x["dt"] * x["A"])[..., None],
    )


def _as_simple_gla(x: Mapping[str, Array]) -> dict[str, Array]:
    """Spell inputs with dt = 1 as those of simple_gla: groups repeated, the rate as a gate at every token."""
    sizes = {"H": x["x"].shape[2], "G": x["B"].shape[2]}
    q, k = (heads_from_groups(x[n], sizes).clone() for n in ("C", "B"))
    return {"q": q, "k": k, "v": x["x"], "g": (x["dt"] * x["A"]).clone()}


def _as_linear(x: Mapping[str, Array]) -> dict[str, Array]:
    """Spell inputs with A = 0 as those of linear_attention: values weighted by dt."""
    sizes = {"H": x["x"].shape[2], "G": x["B"].shape[2]}
    q, k = (heads_from_groups(x[n], sizes).clone() for n in ("C", "B"))
    return {"q": q, "k": k, "v": x["dt"].double()[..., None] * x["x"].double()}


OPERATOR = Operator(
    name="mamba2",
    aliases=("ssd", "mamba_2"),
    summary="A scalar decay exp(dt A) for each head, writes weighted by dt; B and C are shared by groups of heads.",
    equations="S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T\no_t = scale * S_t^T C_t,  head h uses group h // (H / G)",
    source="Dao and Gu 2024, arXiv:2405.21060, section 6 (chunks), without the skip D, the gate z and the bias of dt",
    inputs=(
        Input("x", ("B", "T", "H", "V"), "value", aliases=("u", "hidden_states", "v", "X")),
        Input("dt", ("B", "T", "H"), "step_size", "dt > 0, after softplus", aliases=("delta", "time_step", "dts")),
        Input("A", ("H",), "log_rate", "A < 0", aliases=("A_h", "rate")),
        Input("B", ("B", "T", "G", "K"), "key", aliases=("Bs", "B_", "k")),
        Input("C", ("B", "T", "G", "K"), "query", aliases=("Cs", "C_", "q")),
    ),
    canonical=_canonical,
    identities=COMMON | WRITES_ONLY_KEYS | {"M11", "M12", "M21", "G5"},
    default_scale=1.0,
    grouped=True,
    hazards=(
        "dt reaches the result through the decay and through the value: a gradient with one path is easily taken for right.",
        "Long differences of cumulative sums lose digits; segment sums do not.",
        "Gradients of B and C sum over the heads of a group, that of A over batch and time: in 16 bits they lose digits.",
        "softplus applied inside and outside, or its threshold form left out, changes dt.",
        "The state is kept with the value axis first, [N, H, P, D_state].",
    ),
    reductions=(
        Reduction("linear_attention", "A = 0", lambda x: {**x, "A": x["A"].new_zeros(x["A"].shape)}, _as_linear),
        Reduction("simple_gla", "dt = 1", lambda x: {**x, "dt": x["dt"].new_ones(x["dt"].shape)}, _as_simple_gla),
    ),
    pins={**PINS, "dt_softplus": False},
    state_arguments=("initial_states", "initial_state", "h0", "init_states", "state"),
    value_first=("initial_states",),
)
