"""LRU: a linear recurrent unit, complex diagonal and constant in time, between two dense complex maps."""

from linverify.complexes import Complex, at, entering, exp, parted, plus, product, times, toeplitz, transposed
from linverify.draws import normal, uniform
from linverify.formulas import cat, later, stack
from linverify.operator import Array, Input, Inputs, Operator, Sizes

CHUNK = 16


def _driven(x: Inputs) -> Complex:
    """What enters the states: gamma B u, [B, T, K]."""
    gain = x["gamma_log"].exp()
    real, imaginary = (x["u"] @ x[n].transpose(-1, -2) for n in ("B_re", "B_im"))
    return real * gain, imaginary * gain


def _read(x: Inputs, states: Complex, scale: Array) -> Array:
    """The output Re(C x), [B, T, V]."""
    return scale * (states[0] @ x["C_re"].transpose(-1, -2) - states[1] @ x["C_im"].transpose(-1, -2))


def _log(x: Inputs) -> Complex:
    """Logarithm of lambda."""
    return -x["nu_log"].exp(), x["theta_log"].exp()


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """Token by token."""
    decay, driven = exp(_log(x)), _driven(x)
    state, states = entering(x), []
    for t in range(sizes["T"]):
        new = at(driven, (slice(None), t))
        state = new if state is None else plus(times(decay, state), new)
        states.append(state)
    assert state is not None
    return _read(x, (stack([s[0] for s in states], 1), stack([s[1] for s in states], 1)), scale), parted(state)


def naive(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """The convolution mode: what drives a state, convolved with the powers of its lambda."""
    (rate, turn), driven, state = _log(x), _driven(x), entering(x)
    ages = rate.new_tensor([float(j) for j in range(sizes["T"] + 1)])[:, None]
    powers = exp((ages * rate, ages * turn))  # [T + 1, K]
    real, imaginary = (toeplitz(p[:-1].transpose(0, 1)) for p in powers)
    found = transposed(product((real, imaginary), transposed(driven, 0, 2)), 0, 2)
    if state is not None:
        found = plus(found, times(at(powers, slice(1, None)), at(state, (slice(None), None))))
    return _read(x, found, scale), parted(at(found, (slice(None), -1)))


def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """In chunks: inside one, every pair of tokens with the power of lambda between them."""
    (rate, turn), driven = _log(x), _driven(x)
    outs: list[Complex] = []
    state = entering(x)
    for start in range(0, sizes["T"], CHUNK):
        mine = at(driven, (slice(None), slice(start, start + CHUNK)))
        C = mine[0].shape[1]
        gaps = rate.new_tensor([[float(max(i - j, 0)) for j in range(C)] for i in range(C)])[..., None]
        mask = later(C, C, rate)[..., None]
        powers = tuple(p.masked_fill(mask, 0.0) for p in exp((gaps * rate, gaps * turn)))
        real, imaginary = times(powers, at(mine, (slice(None), None)))
        found = real.sum(2), imaginary.sum(2)
        if state is not None:
            ages = rate.new_tensor([float(i + 1) for i in range(C)])[:, None]
            found = plus(found, times(exp((ages * rate, ages * turn)), at(state, (slice(None), None))))
        state = at(found, (slice(None), -1))
        outs.append(found)
    assert state is not None
    return _read(x, (cat([o[0] for o in outs], 1), cat([o[1] for o in outs], 1)), scale), parted(state)


def _weight(name: str, axes: tuple[str, ...], domain: str, draw: object, *aliases: str) -> Input:
    read_only = name.startswith("C_")
    return Input(name, axes, "weight", domain, aliases=aliases, draw=draw, read_only=read_only)  # type: ignore[arg-type]


OPERATOR = Operator(
    name="lru",
    aliases=("linear_recurrent_unit",),
    summary="Complex states that decay and turn at constant rates, driven by a dense map of the input and read by another.",
    equations="lambda = exp(-exp(nu_log) + i exp(theta_log))\n"
    "x_t = lambda * x_{t-1} + exp(gamma_log) * ((B_re + i B_im) u_t)\n"
    "o_t = scale * Re((C_re + i C_im) x_t);  the state is x, real and imaginary part along its last axis",
    source="Orvieto et al. 2023, arXiv:2303.06349, section 3 and appendix A (code), without the skip D",
    inputs=(
        Input("u", ("B", "T", "V"), "value", aliases=("x", "input_sequence", "inputs", "v")),
        _weight("nu_log", ("K",), "real", uniform(-6.0, 0.5), "nu"),
        _weight("theta_log", ("K",), "real", uniform(-4.0, 1.8), "theta"),
        _weight("gamma_log", ("K",), "real", uniform(-2.0, 0.0), "gamma"),
        _weight("B_re", ("K", "V"), "real", normal(0.0, 0.25), "B_real"),
        _weight("B_im", ("K", "V"), "real", normal(0.0, 0.25), "B_imag"),
        _weight("C_re", ("V", "K"), "real", normal(0.0, 0.25), "C_real"),
        _weight("C_im", ("V", "K"), "real", normal(0.0, 0.25), "C_imag"),
    ),
    forms={"recurrent": recurrent, "naive": naive, "chunkwise": chunkwise},
    o_axes=("B", "T", "V"),
    own_axes={"E": lambda _: 2},
    state_axes=("N", "K", "E"),
    identities=frozenset({"M1", "M4", "M5", "M6", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "The real part is taken after C: Re(C) Re(x) alone loses half of the result.",
        "Powers of lambda from phases t theta lose digits with t in float32; a product of powers does not.",
        "The gradient of a complex parameter is often the conjugate of what real arithmetic gives for its two parts.",
        "nu_log and theta_log are mapped twice: lambda = exp(-exp(nu_log) + i exp(theta_log)).",
        "A scan that combines its pairs in the other order is right only where lambda is real or the same for both.",
    ),
)
