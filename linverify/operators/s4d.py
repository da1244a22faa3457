"""S4D: diagonal state spaces, one for each channel, by zero-order hold; recurrence and convolution are the same map."""

from linverify.complexes import (
    Complex,
    at,
    entering,
    exp,
    expm1,
    inverse,
    parted,
    plus,
    product,
    scaled,
    times,
    toeplitz,
    transposed,
)
from linverify.draws import normal, ramp, uniform
from linverify.formulas import cat, stack
from linverify.operator import Array, Input, Inputs, Operator, Sizes

CHUNK = 16


def _discrete(x: Inputs) -> tuple[Complex, Complex]:
    """Step times rate, dt A, and the weight of an input, (exp(dt A) - 1) / A, both [V, K]."""
    rate = -x["log_A_real"].exp(), x["A_imag"]
    step = scaled(rate, x["log_dt"].exp()[:, None])
    return step, times(expm1(step), inverse(rate))


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """The recurrent mode, token by token."""
    step, gain = _discrete(x)
    decay, read, outs = exp(step), (x["C_re"], x["C_im"]), []
    state = entering(x)
    for t in range(sizes["T"]):
        new = scaled(gain, x["u"][:, t, :, None])
        state = new if state is None else plus(times(decay, state), new)
        outs.append(2 * times(read, state)[0].sum(-1))
    assert state is not None
    return scale * stack(outs, 1), parted(state)


def _tiles(x: Inputs, sizes: Sizes, scale: Array, chunk: int) -> tuple[Array, Array]:
    """Tiles of tokens convolved with the response to a pulse, 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(j dt A_n)."""
    step, gain = _discrete(x)
    read, longest = (x["C_re"], x["C_im"]), min(chunk, sizes["T"])
    ages = step[0].new_tensor([float(j) for j in range(longest + 1)])
    powers = exp((step[0][..., None] * ages, step[1][..., None] * ages))  # [V, K, C + 1]
    weight = at(times(read, gain), (..., None))
    response = toeplitz(2 * times(weight, at(powers, (..., slice(0, longest))))[0].sum(1))
    seen = times(at(read, (..., None)), powers)
    given, outs = entering(x), []
    state = None if given is None else transposed(transposed(given, 0, 1), 1, 2)  # [V, K, B]
    for start in range(0, sizes["T"], longest):
        u = x["u"][:, start : start + longest].transpose(0, 2)  # [V, C, B]
        C = u.shape[1]
        found = response[:, :C, :C] @ u
        back = tuple(p[..., :C].flip(-1) for p in powers)
        new = times(at(gain, (..., None)), (back[0] @ u, back[1] @ u))  # [V, K, B]
        if state is not None:
            real, _ = product(transposed(at(seen, (..., slice(1, C + 1))), 1, 2), state)
            found, new = found + 2 * real, plus(times(at(powers, (..., slice(C, C + 1))), state), new)
        state = new
        outs.append(found)
    assert state is not None
    return scale * cat(outs, 1).transpose(0, 2), parted(transposed(transposed(state, 1, 2), 0, 1))


def naive(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """The convolution mode: one tile."""
    return _tiles(x, sizes, scale, sizes["T"])


def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """Chunks convolved, the states handed on between them."""
    return _tiles(x, sizes, scale, CHUNK)


OPERATOR = Operator(
    name="s4d",
    aliases=("diagonal_state_space", "dss"),
    summary="One diagonal complex state space for each channel, constant in time, discretised by zero-order hold.",
    equations="A = -exp(log_A_real) + i A_imag;  dt = exp(log_dt)\n"
    "x_t[n] = exp(dt A_n) x_{t-1}[n] + (exp(dt A_n) - 1) / A_n u_t  for each channel\n"
    "o_t = scale * 2 Re sum_n C_n x_t[n]  (one of each conjugate pair)\n"
    "the state is x, real and imaginary part along its last axis",
    source="Gu et al. 2022, arXiv:2206.11893, section 3 (zero-order hold, B = 1) and listing 1, without the skip D",
    inputs=(
        Input("u", ("B", "T", "V"), "value", aliases=("x", "v", "inputs")),
        Input("log_dt", ("V",), "weight", "real", aliases=("log_step",), draw=uniform(-6.9, -2.3)),
        Input("log_A_real", ("V", "K"), "weight", "real", aliases=("log_A_re",), draw=normal(-0.7, 0.3)),
        Input("A_imag", ("V", "K"), "weight", "real", aliases=("A_im",), draw=ramp(0.5, 3.14159265)),
        Input("C_re", ("V", "K"), "weight", aliases=("C_real",), read_only=True),
        Input("C_im", ("V", "K"), "weight", aliases=("C_imag",), read_only=True),
    ),
    forms={"recurrent": recurrent, "naive": naive, "chunkwise": chunkwise},
    o_axes=("B", "T", "V"),
    own_axes={"E": lambda _: 2},
    state_axes=("N", "V", "K", "E"),
    identities=frozenset({"M1", "M4", "M5", "M6", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "A transform shorter than 2 T wraps the end of the response around onto its beginning.",
        "(exp(z) - 1) / z loses its digits near z = 0; expm1 keeps them.",
        "The factor 2 stands for the conjugate half of the states; with all of them it must go.",
        "Phases j dt A lose digits with j in float32: late parts of the response are known to few of them.",
        "A large transform's error is relative to the largest output, so small tails are lost in it.",
    ),
)
