"""S4: state spaces whose matrix is diagonal less a rank-one term; recurrence and convolution are the same map."""

from collections.abc import Callable
from functools import cache

from linverify.complexes import (
    Complex,
    at,
    conjugate,
    entering,
    inverse,
    minus,
    parted,
    pi,
    plus,
    scaled,
    times,
    toeplitz,
    total,
    transposed,
)
from linverify.draws import normal, ramp, uniform
from linverify.formulas import cat, stack
from linverify.operator import Array, Draw, Input, Inputs, Operator, Sizes

CHUNK = 8


class _System:
    """A = Lambda - P P^* by the bilinear rule: A_bar = (I - h A)^-1 (I + h A), B_bar = (I - h A)^-1 2h B, h = dt / 2."""

    def __init__(self, x: Inputs) -> None:
        self.rate, self.low, self.write, self.read = ((x[f"{n}_re"], x[f"{n}_im"]) for n in ("Lambda", "P", "B", "C"))
        self.half = 0.5 * x["log_dt"].exp()[:, None]
        one = self.half * 0 + 1
        self.inverse = inverse((one - self.half * self.rate[0], -self.half * self.rate[1]))
        self.solved = times(self.inverse, self.low)
        share = total(times(conjugate(self.low), self.solved), -1, keepdim=True)
        self.powers = [self.eye()]
        self.share = inverse((1 + self.half * share[0], self.half * share[1]))

    def forward(self, x: Complex, axis: int) -> Complex:
        """(I + h A) x; `axis` is that of the states."""
        low, rate = (self.column(z, axis) for z in (self.low, self.rate))
        half = self.column((self.half, self.half), axis)[0]
        removed = times(low, total(times(conjugate(low), x), axis, keepdim=True))
        return plus(x, scaled(minus(times(rate, x), removed), half))

    def backward(self, x: Complex, axis: int) -> Complex:
        """(I - h A)^-1 x, by the Sherman-Morrison formula."""
        first, low, solved, share = (self.column(z, axis) for z in (self.inverse, self.low, self.solved, self.share))
        half = self.column((self.half, self.half), axis)[0]
        y = times(first, x)
        seen = times(share, total(times(conjugate(low), y), axis, keepdim=True))
        return minus(y, scaled(times(solved, seen), half))

    def column(self, x: Complex, axis: int) -> Complex:
        """[V, K] beside [.., V, K], or as columns [V, K, 1] beside [V, K, .]."""
        return x if axis == -1 else at(x, (..., None))

    def step(self, x: Complex, axis: int) -> Complex:
        """A_bar x."""
        return self.backward(self.forward(x, axis), axis)

    def eye(self) -> Complex:
        """The identity, [V, K, K]."""
        K = self.rate[0].shape[-1]
        one = self.half.new_tensor([[float(i == j) for j in range(K)] for i in range(K)])
        return one + 0 * self.rate[0][..., None], 0 * one * self.rate[0][..., None]

    def power(self, tokens: int) -> Complex:
        """A_bar to the power of a chunk's tokens at most, [V, K, K], step by step: a product of two powers costs K as much."""
        while len(self.powers) <= tokens:
            self.powers.append(self.step(self.powers[-1], -2))
        return self.powers[tokens]

    def missing(self, tokens: int) -> Complex:
        """C A_bar to the power of `tokens`, [V, K]: steps, then squares."""
        found, chunks = _row(self.read, self.power(tokens % CHUNK)), tokens // CHUNK
        power = self.power(CHUNK) if chunks else self.powers[0]
        while chunks:
            found = _row(found, power) if chunks & 1 else found
            chunks >>= 1
            power = _product(power, power) if chunks else power
        return found


class _Tile:
    """What the tokens of a tile, and the states that enter it, do to its outputs and to the states that leave it."""

    def __init__(self, s: _System, length: int) -> None:
        self.system = s
        pulses = at(s.backward(scaled(s.write, 2 * s.half), -1), (..., None))  # A_bar^j B_bar, [V, K, C]
        seen = at(_row(s.read, s.power(1)), (slice(None), None))  # C A_bar^(j + 1), [V, C, K]
        for i in range((length - 1).bit_length()):
            pulses = _joined(pulses, _product(s.power(2**i), pulses), -1)
            later = total(times(at(seen, (..., None)), at(s.power(2**i), (slice(None), None))), 2)
            seen = _joined(seen, later, 1)
        self.pulses, self.seen = at(pulses, (..., slice(0, length))), at(seen, (slice(None), slice(0, length)))
        self.response = toeplitz(times(at(s.read, (..., None)), self.pulses)[0].sum(1))  # [V, C, C]

    def outputs(self, state: Complex, length: int) -> Array:
        """Re(C A_bar^(i + 1) x), [V, C, B], from states [V, K, B]."""
        seen = at(self.seen, (slice(None), slice(0, length)))
        return total(times(at(seen, (..., None)), at(state, (slice(None), None))), 2)[0]

    def leaving(self, state: Complex | None, u: Array) -> Complex:
        """The states [V, K, B] behind the tokens u [V, C, B]."""
        C = u.shape[1]
        back = tuple(p[..., :C].flip(-1) for p in self.pulses)
        new = back[0] @ u, back[1] @ u
        return new if state is None else plus(_product(self.system.power(C), state), new)


def _row(row: Complex, matrix: Complex) -> Complex:
    """A row [V, K] times a matrix [V, K, K]."""
    return total(times(at(row, (..., None)), matrix), 1)


def _joined(a: Complex, b: Complex, dim: int) -> Complex:
    return cat([a[0], b[0]], dim), cat([a[1], b[1]], dim)


def _product(a: Complex, b: Complex) -> Complex:
    """Matrix product [V, K, K] by [V, K, .], written out: kernels prepare the response in float32."""
    return total(times(at(a, (..., None)), at(b, (slice(None), None))), 2)


def _entering(x: Inputs) -> Complex | None:
    """The initial states as columns, [V, K, B]."""
    given = entering(x)
    return None if given is None else transposed(transposed(given, 0, 1), 1, 2)


def _final(state: Complex | None) -> Array:
    assert state is not None
    return parted(transposed(transposed(state, 1, 2), 0, 1))


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """The recurrent mode, token by token."""
    s, outs = _System(x), []
    state = entering(x)
    for t in range(sizes["T"]):
        new = scaled(s.write, 2 * s.half * x["u"][:, t, :, None])
        state = s.backward(new if state is None else plus(s.forward(state, -1), new), -1)
        outs.append(times(s.read, state)[0].sum(-1))
    assert state is not None
    return scale * stack(outs, 1), parted(state)


def chunkwise(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Array]:
    """Chunks convolved with the response to a pulse, the states handed on between them."""
    tile, state, outs = _Tile(_System(x), min(CHUNK, sizes["T"])), _entering(x), []
    for start in range(0, sizes["T"], CHUNK):
        u = x["u"][:, start : start + CHUNK].transpose(0, 2)  # [V, C, B]
        C = u.shape[1]
        found = tile.response[:, :C, :C] @ u
        outs.append(found if state is None else found + tile.outputs(state, C))
        state = tile.leaving(state, u)
    return scale * cat(outs, 1).transpose(0, 2), _final(state)


def naive(x: Inputs, sizes: Sizes, scale: Array) -> tuple[Array, Callable[[], Array]]:
    """The convolution mode: the response to a pulse from its generating function at the roots of unity.

    With r_n(z) = 1 / ((1 - z) - h Lambda_n (1 + z)) and C~ = C (I - A_bar^T), multiplied through so that z = -1 is no pole,
    sum_j C A_bar^j B_bar z^j = 2h [ C~ r B - (1 + z) h (C~ r P) (P^* r B) / (1 + (1 + z) h P^* r P) ].
    States have no part in it: those that enter and leave are run on by themselves.
    """
    s, T = _System(x), sizes["T"]
    turn = s.half.new_tensor([float(m) for m in range(T)]) * (2 * pi(s.half) / T)
    z = turn.cos(), -turn.sin()
    ahead, behind = (1 + z[0], z[1]), (1 - z[0], -z[1])
    rate, low, write = (at(y, (..., None)) for y in (s.rate, s.low, s.write))
    half = s.half[..., None]
    cut = at(minus(s.read, s.missing(T)), (..., None))
    r = inverse(minus(behind, scaled(times(rate, ahead), half)))
    back = conjugate(low)
    wb, wp, pb, pp = (total(times(times(a, r), b), 1) for a in (cut, back) for b in (write, low))
    bend = scaled(times(ahead, pp), s.half)
    through = times(scaled(times(ahead, times(wp, pb)), s.half), inverse((1 + bend[0], bend[1])))
    spectrum = scaled(minus(wb, through), 2 * s.half)
    gaps = s.half.new_tensor([[float(m * j % T) for m in range(T)] for j in range(T)]) * (2 * pi(s.half) / T)
    kernel = (at(spectrum, (slice(None), None))[0] * gaps.cos() - spectrum[1][:, None] * gaps.sin()).sum(-1) / T
    o, tile = toeplitz(kernel) @ x["u"].transpose(0, 2), cache(lambda: _Tile(s, min(CHUNK, T)))
    if "initial_state" in x:
        o = o + _echo(tile(), x, T)
    return scale * o.transpose(0, 2), lambda: _run_on(tile(), x, T)


def _echo(tile: _Tile, x: Inputs, T: int) -> Array:
    """What the initial state does to the outputs, [V, T, B]."""
    state, outs = _entering(x), []
    for start in range(0, T, CHUNK):
        assert state is not None
        C = min(CHUNK, T - start)
        outs.append(tile.outputs(state, C))
        state = _product(tile.system.power(C), state)
    return cat(outs, 1)


def _run_on(tile: _Tile, x: Inputs, T: int) -> Array:
    """The final state [B, V, K, 2]."""
    state = _entering(x)
    for start in range(0, T, CHUNK):
        state = tile.leaving(state, x["u"][:, start : start + CHUNK].transpose(0, 2))
    return _final(state)


def _pair(name: str, domain: str, real: Draw, imaginary: Draw, *, read_only: bool = False) -> tuple[Input, Input]:
    axes = "V", "K"
    return (
        Input(f"{name}_re", axes, "weight", domain, aliases=(f"{name}_real",), draw=real, read_only=read_only),
        Input(f"{name}_im", axes, "weight", aliases=(f"{name}_imag",), draw=imaginary, read_only=read_only),
    )


OPERATOR = Operator(
    name="s4",
    aliases=("s4_nplr", "nplr", "structured_state_space"),
    summary="One state space for each channel, a complex diagonal less a term of rank one, discretised by the bilinear rule.",
    equations="A = diag(Lambda) - P P^*;  h = exp(log_dt) / 2\n"
    "x_t = (I - h A)^-1 ((I + h A) x_{t-1} + 2 h B u_t)  for each channel\n"
    "o_t = scale * Re(C x_t) = scale * Re sum_j C A_bar^j B_bar u_{t-j}  (and C A_bar^t x_0)\n"
    "the state is x, real and imaginary part along its last axis",
    source="Gu et al. 2021, arXiv:2111.00396, section 3 and appendix C (algorithm 1: Cauchy kernel and Woodbury identity), "
    "all states kept (no conjugate pairs), without the skip D",
    inputs=(
        Input("u", ("B", "T", "V"), "value", aliases=("x", "v", "inputs")),
        Input("log_dt", ("V",), "weight", "real", aliases=("log_step",), draw=uniform(-6.9, -2.3)),
        *_pair("Lambda", "Lambda_re < 0", uniform(-0.6, -0.4), ramp(-12.0, 3.14159265)),
        *_pair("P", "real", normal(0.0, 1.0), normal(0.0, 1.0)),
        *_pair("B", "real", normal(0.0, 1.0), normal(0.0, 1.0)),
        *_pair("C", "real", normal(0.0, 1.0), normal(0.0, 1.0), read_only=True),
    ),
    forms={"recurrent": recurrent, "chunkwise": chunkwise, "naive": naive},
    o_axes=("B", "T", "V"),
    own_axes={"E": lambda _: 2},
    state_axes=("N", "V", "K", "E"),
    identities=frozenset({"M1", "M4", "M5", "M6", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "The generating function is of the truncated response: C (I - A_bar^T) for C, with T of this call.",
        "At z = -1 the bilinear rule divides by 1 + z; only multiplied through is the value finite.",
        "With one of each conjugate pair the low-rank term must see both halves: 2 Re(P^* x) for P^* x.",
        "P P^* is conjugated on one side; without, the eigenvalues may leave the left half plane.",
        "A transform shorter than 2 T wraps the end of the response around onto its beginning.",
    ),
)
