"""S4: state spaces whose matrix is diagonal less a rank-one term; recurrence and convolution are the same map."""

from linverify.complexes import Complex, at, conjugate, inverse, minus, pi, plus, scaled, times, toeplitz, total
from linverify.draws import normal, ramp, uniform
from linverify.formulas import stack
from linverify.operator import Array, Input, Inputs, Operator, Sizes


class _System:
    """A = Lambda - P P^* by the bilinear rule: A_bar = (I - h A)^-1 (I + h A), B_bar = (I - h A)^-1 2h B, h = dt / 2."""

    def __init__(self, x: Inputs) -> None:
        self.rate, self.low, self.write, self.read = ((x[f"{n}_re"], x[f"{n}_im"]) for n in ("Lambda", "P", "B", "C"))
        self.half = 0.5 * x["log_dt"].exp()[:, None]
        one = self.half * 0 + 1
        self.inverse = inverse((one - self.half * self.rate[0], -self.half * self.rate[1]))
        self.solved = times(self.inverse, self.low)
        share = total(times(conjugate(self.low), self.solved), -1, keepdim=True)
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

    def kept(self, tokens: int) -> Complex:
        """A_bar to the power of `tokens`, [V, K, K], by squaring."""
        K = self.half.shape[0], self.rate[0].shape[-1]
        eye = self.half.new_tensor([[float(i == j) for j in range(K[1])] for i in range(K[1])])
        power: Complex | None = None
        base = self.backward(
            self.forward((eye + 0 * self.rate[0][..., None], 0 * self.rate[0][..., None] * eye), -2), -2
        )
        while tokens:
            if tokens & 1:
                power = base if power is None else _product(power, base)
            tokens >>= 1
            base = _product(base, base) if tokens else base
        assert power is not None
        return power


def _product(a: Complex, b: Complex) -> Complex:
    """Matrix product [V, K, K], written out: kernels prepare the response in float32."""
    return total(times(at(a, (..., None)), at(b, (slice(None), None))), 2)


def recurrent(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """The recurrent mode, token by token."""
    s, outs = _System(x), []
    state: Complex | None = None
    for t in range(sizes["T"]):
        new = scaled(s.write, 2 * s.half * x["u"][:, t, :, None])
        state = s.backward(new if state is None else plus(s.forward(state, -1), new), -1)
        outs.append(times(s.read, state)[0].sum(-1))
    return scale * stack(outs, 1)


def naive(x: Inputs, sizes: Sizes, scale: Array) -> Array:
    """The convolution mode: the response to a pulse from its generating function at the roots of unity.

    With r_n(z) = 1 / ((1 - z) - h Lambda_n (1 + z)) and C~ = C (I - A_bar^T), multiplied through so that z = -1 is no pole,
    sum_j C A_bar^j B_bar z^j = 2h [ C~ r B - (1 + z) h (C~ r P) (P^* r B) / (1 + (1 + z) h P^* r P) ].
    """
    s, T = _System(x), sizes["T"]
    turn = s.half.new_tensor([float(m) for m in range(T)]) * (2 * pi(s.half) / T)
    z = turn.cos(), -turn.sin()
    ahead, behind = (1 + z[0], z[1]), (1 - z[0], -z[1])
    rate, low, write, read = (at(y, (..., None)) for y in (s.rate, s.low, s.write, s.read))
    half = s.half[..., None]
    missing = total(times(read, s.kept(T)), 1)
    cut = at(minus(s.read, missing), (..., None))
    r = inverse(minus(behind, scaled(times(rate, ahead), half)))
    back = conjugate(low)
    wb, wp, pb, pp = (total(times(times(a, r), b), 1) for a in (cut, back) for b in (write, low))
    bend = scaled(times(ahead, pp), s.half)
    through = times(scaled(times(ahead, times(wp, pb)), s.half), inverse((1 + bend[0], bend[1])))
    spectrum = scaled(minus(wb, through), 2 * s.half)
    gaps = s.half.new_tensor([[float(m * j % T) for m in range(T)] for j in range(T)]) * (2 * pi(s.half) / T)
    kernel = (at(spectrum, (slice(None), None))[0] * gaps.cos() - spectrum[1][:, None] * gaps.sin()).sum(-1) / T
    return scale * (toeplitz(kernel) @ x["u"].transpose(0, 2)).transpose(0, 2)


def _pair(name: str, domain: str, real: object, imaginary: object) -> tuple[Input, Input]:
    return (
        Input(f"{name}_re", ("V", "K"), "weight", domain, aliases=(f"{name}_real",), draw=real),  # type: ignore[arg-type]
        Input(f"{name}_im", ("V", "K"), "weight", aliases=(f"{name}_imag",), draw=imaginary),  # type: ignore[arg-type]
    )


OPERATOR = Operator(
    name="s4",
    aliases=("s4_nplr", "nplr", "structured_state_space"),
    summary="One state space for each channel, a complex diagonal less a term of rank one, discretised by the bilinear rule.",
    equations="A = diag(Lambda) - P P^*;  h = exp(log_dt) / 2\n"
    "x_t = (I - h A)^-1 ((I + h A) x_{t-1} + 2 h B u_t)  for each channel\n"
    "o_t = scale * Re(C x_t) = scale * Re sum_j C A_bar^j B_bar u_{t-j}",
    source="Gu et al. 2021, arXiv:2111.00396, section 3 and appendix C (algorithm 1: Cauchy kernel and Woodbury identity), "
    "all states kept (no conjugate pairs), without the skip D",
    inputs=(
        Input("u", ("B", "T", "V"), "value", aliases=("x", "v", "inputs")),
        Input("log_dt", ("V",), "weight", "real", aliases=("log_step",), draw=uniform(-6.9, -2.3)),
        *_pair("Lambda", "Lambda_re < 0", uniform(-0.6, -0.4), ramp(-12.0, 3.14159265)),
        *_pair("P", "real", normal(0.0, 1.0), normal(0.0, 1.0)),
        *_pair("B", "real", normal(0.0, 1.0), normal(0.0, 1.0)),
        *_pair("C", "real", normal(0.0, 1.0), normal(0.0, 1.0)),
    ),
    forms={"recurrent": recurrent, "naive": naive},
    o_axes=("B", "T", "V"),
    state_axes=(),
    identities=frozenset({"M1", "M4", "M19", "G13"}),
    default_scale=1.0,
    hazards=(
        "The generating function is of the truncated response: C (I - A_bar^T) for C, with T of this call.",
        "At z = -1 the bilinear rule divides by 1 + z; only multiplied through is the value finite.",
        "With one of each conjugate pair the low-rank term must see both halves: 2 Re(P^* x) for P^* x.",
        "P P^* is conjugated on one side; without, the eigenvalues may leave the left half plane.",
        "A transform shorter than 2 T wraps the end of the response around onto its beginning.",
    ),
)
