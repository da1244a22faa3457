"""Mamba's selective scan: a diagonal state for each channel, step sizes and projections that depend on the input."""

from collections.abc import Mapping

from linverify.arguments import PINS
from linverify.operator import Array, Canonical, Input, Inputs, Operator, Sizes


def _canonical(x: Mapping[str, Array], sizes: Sizes) -> Canonical:
    # every channel is a head of width K whose value is one number; B and C are common to all
    shape = (*x["u"].shape, sizes["K"])
    return Canonical(
        q=x["C"][:, :, None].expand(*shape),
        k=x["B"][:, :, None].expand(*shape),
        v=(x["dt"] * x["u"])[..., None],
        log_decay=x["dt"][..., None] * x["A"],
    )


def _readout(o: Array, _: Inputs, __: Sizes) -> Array:
    return o[..., 0]


OPERATOR = Operator(
    name="mamba1",
    aliases=("selective_scan", "mamba", "s6"),
    summary="A state of K numbers for each channel, each decaying by exp(dt A); writes weighted by dt, B and C common to all.",
    equations="h_t[d, n] = exp(dt_t[d] A[d, n]) h_{t-1}[d, n] + dt_t[d] B_t[n] u_t[d]\n"
    "o_t[d] = scale * sum_n C_t[n] h_t[d, n]",
    source="Gu and Dao 2023, arXiv:2312.00752, section 3.2 and algorithm 2, with B discretised as dt B as the code does, "
    "and without the skip D, the gate z and the bias of dt",
    inputs=(
        Input("u", ("B", "T", "V"), "value", aliases=("x", "hidden_states", "X")),
        Input("dt", ("B", "T", "V"), "step_size", "dt > 0, after softplus", aliases=("delta", "time_step", "dts")),
        Input("A", ("V", "K"), "log_rate", "A < 0", aliases=("A_", "rate")),
        Input("B", ("B", "T", "K"), "key", aliases=("Bs", "B_")),
        Input("C", ("B", "T", "K"), "query", aliases=("Cs", "C_")),
    ),
    canonical=_canonical,
    readout=_readout,
    o_axes=("B", "T", "V"),
    state_axes=("N", "V", "K"),
    identities=frozenset({"M1", "M2", "M3", "M4", "M5", "M6", "M10", "M11", "M12", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "dt reaches the result through the decay and through the write: a gradient with one path is easily taken for right.",
        "B is multiplied by dt, not by (exp(dt A) - 1) / A: the exact hold differs where dt A is not small.",
        "Gradients of B and C sum over all channels, that of A over batch and time: in 16 bits they lose digits.",
        "softplus applied inside and outside, or its threshold form left out, changes dt.",
        "A parallel scan of pairs (decay, write) combines them in the order of time; exchanged it is right for equal decays.",
    ),
    pins={**PINS, "delta_softplus": False},
)
