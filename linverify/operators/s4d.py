"""S4D: diagonal state spaces, one for each channel, by zero-order hold; recurrence and convolution are the same map."""

from linverify.complexes import Complex, at, exp, expm1, inverse, plus, scaled, times, toeplitz
from linverify.draws import normal, ramp, uniform
from linverify.formulas import stack
from linverify.operator import Array, Input, Inputs, Operator, Sizes


def _discrete(x: Inputs) -> tuple[Complex, Complex]:
    """Step times rate, dt A, and the pulse's weight C (exp(dt A) - 1) / A, both [V, K]."""
    rate = -x["log_A_real"].exp(), x["A_imag"]
    step = scaled(rate, x["log_dt"].exp()[:, None])
    return step, times((x["C_re"], x["C_im"]), times(expm1(step), inverse(rate)))


def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """The convolution mode: the response to a pulse, 2 Re sum_n weight_n exp(j dt A_n), convolved with the input."""
    step, weight = _discrete(x)
    ages = step[0].new_tensor([float(j) for j in range(sizes["T"])])
    powers = exp((step[0][..., None] * ages, step[1][..., None] * ages))
    kernel = 2 * times(at(weight, (..., None)), powers)[0].sum(1)
    return scale * (toeplitz(kernel) @ x["u"].transpose(0, 2)).transpose(0, 2)


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """The recurrent mode: x_t = exp(dt A) x_{t-1} + u_t, read with the pulse's weight."""
    step, weight = _discrete(x)
    decay, outs = exp(step), []
    state: Complex | None = None
    for t in range(sizes["T"]):
        u = x["u"][:, t, :, None]
        new = (u, u * 0) if state is None else plus(times(decay, state), (u, u * 0))
        outs.append(2 * times(weight, new)[0].sum(-1))
        state = new
    return scale * stack(outs, 1)


OPERATOR = Operator(
    name="s4d",
    aliases=("diagonal_state_space", "dss"),
    summary="One diagonal complex state space for each channel, constant in time, discretised by zero-order hold.",
    equations="A = -exp(log_A_real) + i A_imag;  dt = exp(log_dt)\n"
    "x_t[n] = exp(dt A_n) x_{t-1}[n] + (exp(dt A_n) - 1) / A_n u_t  for each channel\n"
    "o_t = scale * 2 Re sum_n C_n x_t[n]  (one of each conjugate pair)",
    source="Gu et al. 2022, arXiv:2206.11893, section 3 (zero-order hold, B = 1) and listing 1, without the skip D",
    inputs=(
        Input("u", ("B", "T", "V"), "value", aliases=("x", "v", "inputs")),
        Input("log_dt", ("V",), "weight", "real", aliases=("log_step",), draw=uniform(-6.9, -2.3)),
        Input("log_A_real", ("V", "K"), "weight", "real", aliases=("log_A_re",), draw=normal(-0.7, 0.3)),
        Input("A_imag", ("V", "K"), "weight", "real", aliases=("A_im",), draw=ramp(0.5, 3.14159265)),
        Input("C_re", ("V", "K"), "weight", aliases=("C_real",)),
        Input("C_im", ("V", "K"), "weight", aliases=("C_imag",)),
    ),
    forms={"recurrent": recurrent, "naive": naive},
    o_axes=("B", "T", "V"),
    state_axes=(),
    identities=frozenset({"M1", "M4", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "A transform shorter than 2 T wraps the end of the response around onto its beginning.",
        "(exp(z) - 1) / z loses its digits near z = 0; expm1 keeps them.",
        "The factor 2 stands for the conjugate half of the states; with all of them it must go.",
        "Phases j dt A lose digits with j in float32: late parts of the response are known to few of them.",
        "A large transform's error is relative to the largest output, so small tails are lost in it.",
    ),
)
