"""Emulation: run any torch program as low-precision hardware would, operation by operation, forward and backward.

It serves operators for which there is no hand-written rounding model (``linverify.model``). Under the mode every product rounds
its operands as the recipe says and accumulates in float32, every sum takes the random walk of a float32 accumulator, and every
elementary function its last-place error. Where realisations are drawn, operands are rounded up or down at random, so that what
is representable stays as it is; the scatter is scaled to that of rounding to nearest (whose variance is half as large).

An operation that is none of these raises: an error model that skips what it does not know would call wrong kernels right.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from linverify.dispatch import Mode
from linverify.dtype import Format, round_to, ulp
from linverify.noise import SPREAD, U32, walked
from linverify.recipe import Recipe

aten = torch.ops.aten
_PRODUCTS = {aten.mm, aten.bmm}
_ADDED_PRODUCTS = {aten.addmm, aten.baddbmm}
_SUMS = {aten.sum, aten.mean}
_ROUNDED = {
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.sqrt, aten.rsqrt, aten.reciprocal, aten.pow),
    *(aten.sin, aten.cos, aten.tanh, aten.sigmoid, aten.log, aten.log1p, aten.expm1, aten.exp),
    *(aten.sigmoid_backward, aten.tanh_backward),
}
_EXACT = {
    *(
        aten.neg,
        aten.abs,
        aten.sgn,
        aten.sign,
        aten.relu,
        aten.threshold_backward,
        aten.clamp,
        aten.clamp_min,
        aten.amax,
    ),
    *(aten.maximum, aten.where, aten.masked_fill, aten.cat, aten.clone, aten.copy, aten._to_copy, aten.index_select),
    *(aten.index, aten.index_put, aten.index_add, aten._unsafe_index_put, aten.flip, aten.constant_pad_nd, aten.fill),
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_full, aten.zeros, aten.ones, aten.full),
    *(aten.empty, aten.empty_like, aten.arange, aten.scalar_tensor, aten.slice_backward, aten.select_backward),
    *(aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne, aten.bitwise_not, aten.bitwise_and, aten.logical_not),
    *(aten.logical_and, aten.tril, aten.triu, aten.eye, aten.zero, aten.new_empty, aten.new_empty_strided, aten.roll),
    *(aten.isinf, aten.isnan, aten.repeat, aten.gather, aten.scatter_add, aten.slice_scatter, aten.select_scatter),
    *(aten.lift_fresh, aten.lift_fresh_copy, aten._local_scalar_dense, aten.stack, aten.new_ones, aten._unsafe_view),
}


class Emulation(Mode):
    """A dispatch mode; see the module."""

    def __init__(self, recipe: Recipe, generator: torch.Generator | None) -> None:
        """With a generator, draw realisations (carry float64 tensors); without, round to nearest (carry float32)."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.operand: Format = recipe.format("scores")
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        view, packet, in_place, model = _known(func)
        if view:
            return func(*args, **kwargs)
        if model == "product":
            return self.product(func, *args)
        if model == "added product":
            return self._added_product(*args, **kwargs)
        if model == "solve":
            return self._solved(*args, **kwargs)
        if not model:
            raise NotImplementedError(f"no error model for {func}: state the form in sums, products and functions")
        if self.generator is None or model == "exact":
            return func(*args, **kwargs)
        before = args[0].clone() if in_place else None
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.dtype.is_floating_point:
            return out
        if model == "rounded" and packet is not aten.exp:
            size = out.nan_to_num(posinf=0.0, neginf=0.0)  # what is infinite stays so
            noisy = torch.addcmul(out, self._random(out), size, value=SPREAD / 3**0.5 * U32)
            return noisy if before is None else out.copy_(noisy)
        size = self._size(packet, before if before is not None else args[0], out, args, kwargs)
        noise = self._random(out) * size.nan_to_num(posinf=0.0, neginf=0.0)
        if packet is aten.cumsum:
            noise = noise + noise.cumsum(args[1])  # each partial sum carries on what was lost before
        return out.add_(noise) if before is not None else out + noise

    def _size(self, packet: Any, x: Any, out: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Standard deviation of the float32 error of a sum, a running sum or an exponential."""
        if packet in _SUMS:
            n = x.numel() / max(1, out.numel())
            axes = args[1] if len(args) > 1 else None
            keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
            energy = x.square().sum() if axes is None else x.square().sum(axes, keepdim=keep)
            factor = n if packet is aten.mean else 1.0
            return walked(out, energy / factor**2, n)
        if packet is aten.cumsum:
            return (1.5 * 0.42 * U32) * out
        assert packet is aten.exp, packet
        # exp2 of x log2(e): half a place of the argument, and the function's own
        slip: Tensor = U32 * (1 + x.abs().nan_to_num(posinf=0.0)) * out
        return slip

    def _random(self, like: Tensor) -> Tensor:
        assert self.generator is not None
        drawn = torch.randn(like.shape, generator=self.generator, device=self.generator.device, dtype=torch.float32)
        return drawn.to(like.dtype)  # see Noise.random

    def rounded(self, x: Tensor) -> Tensor:
        """An operand of a product, as the recipe keeps it."""
        fmt = self.operand
        if fmt.unit_roundoff <= U32:
            return x
        if self.generator is None:
            return round_to(x, fmt)
        chance = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        if fmt.truncates:
            return x - 2 * chance * (x - round_to(x, fmt))
        spacing = ulp(x, fmt).to(x.dtype)
        below = (x / spacing).floor() * spacing
        either = below + spacing * (chance * spacing < x - below)
        drawn: Tensor = x + (either - x) * 0.5**0.5
        return drawn

    def stored(self, x: Tensor) -> Tensor:
        """A value that is kept in the operands' format; its gradient passes as it is."""
        out: Tensor = _Stored.apply(x, self)  # type: ignore[no-untyped-call]  # torch's own
        return out

    def product(self, func: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        """A @ b of rounded operands, accumulated in float32."""
        a, b = self.rounded(a), self.rounded(b)
        y = func(a, b)
        if self.generator is None:
            return y
        n = a.shape[-1]
        walk = func(a.square(), b.square())
        return y + self._random(y) * walked(y, walk, n)

    def stepped(self, state: Tensor, steps: int) -> Tensor:
        """A state after so many tokens at each of which it is rounded, and its cotangent after as many on its way back.

        Each rounding is as large as the state then is; where steps are few beside what came before, as it is now.
        """
        if self.generator is None:
            return state
        out: Tensor = _Stepped.apply(state, self, steps)  # type: ignore[no-untyped-call]  # torch's own
        return out

    def slipped(self, x: Tensor, steps: int) -> Tensor:
        """A value with the errors of so many roundings."""
        with _disable_current_modes():  # what is an error has none
            return torch.addcmul(x, self._random(x), x, value=SPREAD * (steps / 3) ** 0.5 * U32)

    def _added_product(self, added: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
        multiply = aten.bmm.default if a.dim() == 3 else aten.mm.default
        return beta * added + alpha * self.product(multiply, a, b)

    def _solved(self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
        """A triangular solve as kernels do it: the inverse in float32, then a product."""
        if not left:
            raise NotImplementedError("no error model for a solve from the right: transpose it")
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
        inverse = torch.linalg.solve_triangular(a, eye, upper=upper, unitriangular=unitriangular)
        if self.generator is not None:
            inverse = inverse + (0.42 * U32 * a.shape[-1] ** 0.5) * self._random(inverse) * inverse
        right = b.expand(*inverse.shape[:-2], *b.shape[-2:])
        flat = self.product(aten.bmm.default, inverse.flatten(0, -3), right.flatten(0, -3))
        return flat.reshape(right.shape)


class _Stored(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, mode: Emulation) -> Tensor:
        with _disable_current_modes():  # rounding is the error here, and has none of its own
            return mode.rounded(x).clone()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Stepped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, mode: Emulation, steps: int) -> Tensor:
        ctx.mode, ctx.steps = mode, steps
        return mode.slipped(state, steps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        return ctx.mode.slipped(g, ctx.steps), None, None


@cache
def _known(func: Any) -> tuple[bool, Any, bool, str]:
    """Of an overload: whether it is a view, the operation out of place, whether it works in place, and its error model."""
    packet = _out_of_place(func)
    models = (
        ("product", _PRODUCTS),
        ("added product", _ADDED_PRODUCTS),
        ("solve", {aten.linalg_solve_triangular}),
        ("sum", {*_SUMS, aten.cumsum}),
        ("rounded", _ROUNDED),
        ("exact", _EXACT),
    )
    model = next((name for name, packets in models if packet in packets), "")
    return _is_view(func), packet, bool(func._schema.is_mutable), model


def _is_view(func: Any) -> bool:
    """Whether a result shares memory with an argument that is not written."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _out_of_place(func: Any) -> Any:
    """The operation behind an overload; of one that works in place, the operation that does not."""
    packet = func.overloadpacket
    name = packet.__name__
    return getattr(aten, name[:-1], packet) if func._schema.is_mutable and name.endswith("_") else packet
