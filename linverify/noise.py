"""Two ways to run a rounding model: with real rounding, or with random relative errors of the same size (dither).

A dithered value is x (1 + d), d uniform in +-0.7355 u, which has the root mean square 0.4247 u that rounding to nearest leaves
on a log-uniform mantissa; truncation is x (1 - d), d uniform in [0, 0.7355 * 2^-10]. A float32 dot product of length n gets
the random-walk error 0.42 u sqrt(n/2 sum a^2 b^2 + n/3 (sum a b)^2). Rounding to nearest is no dither where a value is nearly
representable (v * exp(-tiny)), so both are run.
"""

from typing import Any

import torch
from torch import Tensor

from linverify.dtype import FP16, FP32, Format, round_to
from linverify.recipe import Stack

U32 = FP32.unit_roundoff
SPREAD = 0.7355
_GOLDEN = 0x1E3779B97F4A7C15  # an odd number: keys of several realisations differ in all their bits
_DECAYED = ("query", "key", "value", "folded_query", "folded_key")


class Noise:
    """Rounding of a stack's batch: the leading axis holds members x samples x rows.

    A careful noise leaves alone what rounding to nearest would leave alone: the scale of a declared recipe must not be wide
    where its operands are exact. A real one rounds operands as hardware does and perturbs what is kept in float32 alone: two
    such runs differ as two kernels of one recipe do. With `only`, the named points alone err ("accumulation" for the sums of
    products), which tells what each of them contributes.
    """

    def __init__(
        self,
        stack: Stack,
        samples: int,
        rows: int,
        *,
        dither: bool,
        generator: torch.Generator | None,
        device: torch.device,
        careful: bool = False,
        real: bool = False,
        only: frozenset[str] | None = None,
    ) -> None:
        self.stack = stack
        self.rows = rows
        self.per_member = samples * rows
        self.dither = dither
        self.careful = careful
        self.real = real
        self.only = only
        self.generator = generator
        self.device = device
        self.structure = stack[0]
        self.exact_walk = stack[0].format("scores").unit_roundoff <= U32
        # Realisations of low-precision recipes may be carried in float32: its own error is far below what is simulated.
        self.carrier = torch.float64 if dither and (self.exact_walk or real or only is not None) else torch.float32
        self._key = 0 if generator is None else generator.initial_seed()
        self._tables: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}

    def random(self, like: Tensor, *, normal: bool = False) -> Tensor:
        """Uniform in [0, 1) or standard normal, of this shape and dtype; float32's digits are enough for noise."""
        make = torch.randn if normal else torch.rand
        drawn = make(like.shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return drawn.to(like.dtype)  # a CPU takes 25 times as long where dtypes are mixed

    def _table(self, point: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Slope and offset of the relative error of every batch entry, and the spacing of subnormals where it matters."""
        if point not in self._tables:
            slope, offset, tiny = [], [], []
            for member in self.stack:
                fmt = member.format(point)
                # where it is not rounded to an operand's format, a decayed operand keeps the float32 errors of its making:
                # of the exponential, of the product with it and of the scale
                made = 3**0.5 if self.careful and fmt is FP32 and point in _DECAYED else 1.0
                u = made * fmt.unit_roundoff
                slope.append(-SPREAD * u if fmt.truncates else 2 * SPREAD * u)
                offset.append(0.0 if fmt.truncates else -SPREAD * u)
                tiny.append(FP16.smallest_subnormal if fmt is FP16 else 0.0)

            def spread(values: list[float]) -> Tensor:
                return torch.tensor(values, device=self.device, dtype=self.carrier).repeat_interleave(self.per_member)

            self._tables[point] = (spread(slope), spread(offset), spread(tiny) if any(tiny) else None)
        return self._tables[point]

    def errs(self, point: str) -> bool:
        """Whether this point errs at all."""
        return self.only is None or point in self.only

    def round(self, x: Tensor, point: str) -> Tensor:
        """Round, or perturb, every batch entry as its member does at this point."""
        if not self.errs(point):
            return x
        formats: list[Format] = [m.format(point) for m in self.stack]
        if not self.dither or (self.real and formats[0].precision < FP32.precision):
            if len(set(formats)) == 1:
                return round_to(x, formats[0])
            return torch.cat([round_to(part, f) for part, f in zip(x.split(self.per_member), formats, strict=True)])
        slope, offset, tiny = (None if t is None else t.reshape(-1, *[1] * (x.dim() - 1)) for t in self._table(point))
        assert slope is not None
        assert offset is not None
        y = torch.addcmul(x, x, self.random(x).mul_(slope).add_(offset))
        y = y if tiny is None else y + tiny * (self.random(x) - 0.5) * (x != 0)
        fmt = self.structure.format(point)
        if self.careful and fmt.precision < (53 if self.carrier == torch.float64 else 24):
            return torch.where(round_to(x, fmt) == x, x, y)
        return y

    def hold(self, x: Tensor, point: str) -> Tensor:
        """A term as an operand of an unknown kernel: rounded at this point, unless every member's format represents it.

        Inputs are in their format as they come; what is computed from them (dt x of mamba2, a feature map) is not. A declared
        recipe rounds operands where it says so.
        """
        declared = self.structure.operands is not None or self.structure.input is not None
        if declared or self.structure.format(point).precision >= FP32.precision:
            return x
        parts = zip(self.stack, x.split(self.per_member), strict=True)
        held = torch.cat([round_to(part, member.format(point)) == part for member, part in parts])
        return x if bool(held.all()) else torch.where(held, x, self.round(x, point))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """A @ b with the error of float32 accumulation."""
        y = a @ b
        if self.structure.accumulation is not None:
            y = self.round(y, "accumulation")
        if not self.dither or not self.errs("accumulation"):
            return y
        n = a.shape[-1]
        noise = self.random(y, normal=True)
        if self.exact_walk:
            walk = (a * a).float() @ (b * b).float()
            return torch.addcmul(y, noise, walked(y, walk, n))
        # Where operands are rounded to 16 or 11 bits this term matters for few results: the mean field |a_i|^2 |b_j|^2 / n does
        rows: Tensor = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
        columns: Tensor = torch.linalg.vector_norm(b, dim=-2, keepdim=True)
        size = torch.add(rows * columns, y.abs(), alpha=(2 * n / 3) ** 0.5)
        return torch.addcmul(y, noise, size, value=0.42 * 0.5**0.5 * U32)

    def running_sum(self, x: Tensor, axis: int) -> Tensor:
        """Inclusive sum along an axis with the error of a float32 scan."""
        y = x.cumsum(axis)
        if not self.dither:
            return y
        slip = 1.5 * (self.round(y, "sum") - y)
        return y + slip.cumsum(axis) + slip

    def total(self, x: Tensor, sums: Tensor, axis: int) -> Tensor:
        """Sum of log gates along an axis, the running sums known: a sum of its own, and what its exponential loses.

        Kernels take it from the scan, or reduce the same terms in another order (tl.sum beside tl.cumsum): then what the two
        lost stays in their difference, as far as it reaches the end. Equal totals err alike, as in `decay`.

        Args:
            x: the terms.
            sums: their inclusive sums.
            axis: of the terms; one is left of it.
        """
        last = sums.narrow(axis, sums.shape[axis] - 1, 1)
        if not self.dither or not self.errs("sum"):
            return last
        # what `running_sum` leaves in its last, each partial sum's slip once and the last one's twice; and one rounding
        energy, exact = sums.detach().square().sum(axis, keepdim=True), x.detach().sum(axis, keepdim=True)
        slip = (SPREAD / 3**0.5 * U32) * (1.5**2 * (energy + 3 * exact.square()) + 1).sqrt()
        return last + (exact + torch.where(exact == 0, 0.0, slip * self._sign(exact)) - last.detach())

    def decay(self, g: Tensor) -> Tensor:
        """A log gate by whose exponential a state is multiplied, off by the error of float32's.

        Hardware takes exp2 of g * log2(e), whose argument is off by about half a unit in the last place, and so is what comes
        out or more (CUDA C++ Programming Guide, intrinsic functions: __expf errs by at most 2 + |1.173 x| units). It is a
        function: equal gates err alike, at every token, in every row, so over n steps that share a gate their errors add up
        to n times one, not to its root. Where no gate is, exp(0) is 1 and errs nowhere.
        """
        if not self.dither or not self.errs("gate"):
            return g
        exact = g.detach()
        size = U32 * (4 + (0.58 * exact).square()).sqrt()
        return g + torch.where(exact == 0, 0.0, size * self._sign(exact))

    def _sign(self, x: Tensor) -> Tensor:
        """A random sign for every distinct value of every realisation; batch entries of one follow each other.

        A sign, since the size of one draw must not be left to chance where a result depends on few. Values are hashed
        (SplitMix64's finaliser: Steele, Lea and Flood, OOPSLA 2014), so one Noise gives them the same sign wherever they come.
        """
        entry = torch.arange(x.shape[0], device=x.device) // self.rows
        z = x.float().view(torch.int32).long() + ((entry + 1) * _GOLDEN + self._key).view(-1, *[1] * (x.dim() - 1))
        z = (z ^ (z >> 30)) * -0x40A7B892E31B1A47
        z = (z ^ (z >> 27)) * -0x6B2FB644ECCEEE15
        return (1 - ((z ^ (z >> 31)) & 2)).to(x.dtype)

    def summands(self, weights: Tensor, terms: int) -> Tensor:
        """Weights of the terms of sums in float32, each off by its part of what the sums lose, where that is all that errs.

        An accumulator's walk over n terms t is 0.42 u sqrt(n/2 sum t^2) beside what its partial sums lose: an error of its own
        of size 0.42 u sqrt(n/2) in every term. It is the terms that lose, not the sum: where they are large and cancel, so is
        what is left of the sum's error. The gradients' sums, over tokens, lose as much.
        """
        if not self.dither or not self.exact_walk or not self.errs("accumulation"):
            return weights
        # uniform in -1 to 1 has a variance of a third
        slips = self.random(weights).mul_(2).sub_(1).mul_(0.42 * U32 * (1.5 * terms) ** 0.5)
        return torch.addcmul(weights, weights, slips)

    def walk(self, total: Tensor, energy: Tensor, terms: float) -> Tensor:
        """A sum of so many terms with the error of a float32 accumulator that takes them one by one.

        Args:
            total: the sum.
            energy: sum of the terms' squares; the same shape.
            terms: how many.
        """
        if not self.dither or not self.errs("accumulation"):
            return total
        return total + self.random(total, normal=True) * walked(total, energy, terms)


def walked(total: Tensor, energy: Tensor, terms: float) -> Tensor:
    """Standard deviation of a float32 accumulator's random walk over so many terms, whose squares sum to `energy`."""
    squared = torch.addcmul(terms / 2 * energy.to(total.dtype), total, total, value=terms / 3)
    return squared.sqrt_().mul_(0.42 * U32)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Noise, into: str, back: str) -> Tensor:
        ctx.noise, ctx.back = noise, back
        return noise.round(x, into) if into else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grads
        return (ctx.noise.round(g, ctx.back) if ctx.back else g), None, None, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, noise: Noise, back: str) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.noise, ctx.back = noise, back
        return noise.product(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (g,) = grads
        a, b = ctx.saved_tensors
        if ctx.back:
            g = ctx.noise.round(g, ctx.back)
        return ctx.noise.product(g, b.transpose(-1, -2)), ctx.noise.product(a.transpose(-1, -2), g), None, None


class _RunningSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Noise, axis: int) -> Tensor:
        ctx.noise, ctx.axis = noise, axis
        return noise.running_sum(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        return ctx.noise.running_sum(g.flip(ctx.axis), ctx.axis).flip(ctx.axis), None, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Noise, tokens: int) -> Tensor:
        ctx.noise = noise
        return x[:, None].expand(-1, tokens, *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        return ctx.noise.walk(g.sum(1), g.square().sum(1), g.shape[1]), None, None


def shared(x: Tensor, noise: Noise, tokens: int) -> Tensor:
    """One value [N, ...] for every token of a row, [N, tokens, ...], whose gradient is summed token by token."""
    out: Tensor = _Shared.apply(x, noise, tokens)  # type: ignore[no-untyped-call]  # torch's own
    return out


def rounded(x: Tensor, noise: Noise, into: str, back: str = "") -> Tensor:
    """Round x at a point; its cotangent is rounded at `back` on the way home."""
    out: Tensor = _Round.apply(x, noise, into, back)  # type: ignore[no-untyped-call]  # torch's own
    return out


def held(x: Tensor, noise: Noise, point: str) -> Tensor:
    """A term as an operand's format holds it; its cotangent passes as it is."""
    found = noise.hold(x.detach(), point)
    return x + (found - x.detach())


def product(a: Tensor, b: Tensor, noise: Noise, back: str = "") -> Tensor:
    """Matrix product whose cotangent is rounded at `back` before it is multiplied."""
    out: Tensor = _Product.apply(a, b, noise, back)  # type: ignore[no-untyped-call]  # torch's own
    return out


def running_sum(x: Tensor, noise: Noise, axis: int) -> Tensor:
    """Inclusive sum with float32 errors, forward and backward."""
    out: Tensor = _RunningSum.apply(x, noise, axis)  # type: ignore[no-untyped-call]  # torch's own
    return out
