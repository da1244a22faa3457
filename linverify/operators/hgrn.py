"""HGRN: one gated scalar memory for each channel, without keys and queries."""

from collections.abc import Mapping

from linverify.arguments import PINS
from linverify.formulas import ones_like
from linverify.operator import Array, Canonical, Input, Inputs, Operator, Sizes


def _canonical(x: Mapping[str, Array], _: Sizes) -> Canonical:
    # every channel is a head of width one
    one = ones_like(x["x"])[..., None]
    return Canonical(q=one, k=one, v=x["x"][..., None], log_decay=x["g"][..., None])


def _readout(o: Array, _: Inputs, __: Sizes) -> Array:
    return o[..., 0]


OPERATOR = Operator(
    name="hgrn",
    aliases=("gated_linear_rnn", "hgru"),
    summary="Every channel decays by its own gate and takes in its input.",
    equations="h_t = exp(g_t) * h_{t-1} + x_t\no_t = scale * h_t",
    source="Qin et al. 2023, arXiv:2311.04823, section 3.1, with x = (1 - f) i given, a real decay f = exp(g) and no output "
    "gate; the arguments of fla.ops.hgrn",
    inputs=(
        Input("x", ("B", "T", "V"), "value", aliases=("i", "v", "u", "X")),
        Input(
            "g",
            ("B", "T", "V"),
            "log_gate",
            "g <= 0, natural log",
            aliases=("log_f", "log_decay", "gate", "f", "log_a"),
        ),
    ),
    canonical=_canonical,
    readout=_readout,
    o_axes=("B", "T", "V"),
    state_axes=("N", "V"),
    identities=frozenset({"M1", "M4", "M5", "M6", "M10", "M11", "M12", "M19", "G6", "G13"}),
    default_scale=1.0,
    hazards=(
        "Chunks joined with exp of a running sum of gates need the sum of the chunk, not of the sequence.",
        "A scan that divides by the running product of decays overflows once the gates sum below -88.",
        "A gate kept in 16 bits rounds to one from 0.998 on, and the memory never forgets.",
        "The gradient of a gate needs the state of the token before; shifted by one it looks plausible.",
    ),
    pins=PINS,
)
