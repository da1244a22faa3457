"""Arrays of mpmath numbers that spell arithmetic as torch tensors do, and differentiate in reverse.

An operator's statement uses only what both have in common, so the same statement runs in float64 and in 50 digits: the methods
of `MpArray`, which torch tensors have by the same names, and `linverify.formulas` for what is no method.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mpmath
import numpy as np

_exp = np.frompyfunc(mpmath.exp, 1, 1)
_expm1 = np.frompyfunc(mpmath.expm1, 1, 1)
_log = np.frompyfunc(mpmath.log, 1, 1)
_log1p = np.frompyfunc(mpmath.log1p, 1, 1)
_sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)
_sin = np.frompyfunc(mpmath.sin, 1, 1)
_cos = np.frompyfunc(mpmath.cos, 1, 1)
_tanh = np.frompyfunc(mpmath.tanh, 1, 1)
_mpf = np.frompyfunc(mpmath.mpf, 1, 1)

Pull = Callable[[np.ndarray], np.ndarray]


def _reduce(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes that broadcasting added or stretched."""
    while grad.ndim > len(shape):
        grad = np.asarray(grad.sum(axis=0), dtype=object)
    for axis, length in enumerate(shape):
        if length == 1 and grad.shape[axis] != 1:
            grad = grad.sum(axis=axis, keepdims=True)
    return grad


class MpArray:
    """An array of mpmath numbers with a tape.

    Attributes:
        value: object array of mpf.
        grad: adjoint of the last `backward`, or None.
    """

    __slots__ = ("_parents", "grad", "value")

    def __init__(self, value: Any, parents: Iterable[tuple["MpArray", Pull]] = ()) -> None:
        # float64 and integers convert exactly; the object dtype keeps every later operation in mpmath
        self._parents = tuple(parents)
        held = np.asarray(value, dtype=object)
        self.value: np.ndarray = held if self._parents else np.asarray(_mpf(held), dtype=object)
        self.grad: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.value.shape

    def new_tensor(self, values: Any) -> "MpArray":
        """Return an array of constants, exactly as given."""
        return MpArray(np.asarray(values, dtype=object))

    def _lift(self, other: Any) -> "MpArray":
        return other if isinstance(other, MpArray) else MpArray(np.asarray(other, dtype=object))

    def __add__(self, other: Any) -> "MpArray":
        o = self._lift(other)
        return MpArray(self.value + o.value, ((self, lambda g: g), (o, lambda g: g)))

    def __mul__(self, other: Any) -> "MpArray":
        o = self._lift(other)
        return MpArray(self.value * o.value, ((self, lambda g: g * o.value), (o, lambda g: g * self.value)))

    def __truediv__(self, other: Any) -> "MpArray":
        o = self._lift(other)
        quotient = self.value / o.value
        return MpArray(quotient, ((self, lambda g: g / o.value), (o, lambda g: -g * quotient / o.value)))

    def __rtruediv__(self, other: Any) -> "MpArray":
        return self._lift(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> "MpArray":
        return MpArray(-self.value, ((self, lambda g: -g),))

    def __sub__(self, other: Any) -> "MpArray":
        return self + (-self._lift(other))

    def __rsub__(self, other: Any) -> "MpArray":
        return self._lift(other) + (-self)

    def __getitem__(self, index: Any) -> "MpArray":
        def scatter(grad: np.ndarray) -> np.ndarray:
            full = np.full(self.value.shape, mpmath.mpf(0), dtype=object)
            np.add.at(full, index, grad)
            return full

        return MpArray(self.value[index], ((self, scatter),))

    def __matmul__(self, other: "MpArray") -> "MpArray":
        a, b = self.value, other.value
        return MpArray(
            a @ b, ((self, lambda g: g @ np.swapaxes(b, -1, -2)), (other, lambda g: np.swapaxes(a, -1, -2) @ g))
        )

    def __pow__(self, exponent: int) -> "MpArray":
        return MpArray(self.value**exponent, ((self, lambda g: g * exponent * self.value ** (exponent - 1)),))

    def _map(self, out: Any, slope: Callable[[], Any]) -> "MpArray":
        """An elementwise function, its slope taken only when a gradient asks for it."""
        return MpArray(np.asarray(out, dtype=object), ((self, lambda g: g * slope()),))

    def exp(self) -> "MpArray":
        """Elementwise exponential."""
        out = _exp(self.value)
        return self._map(out, lambda: out)

    def expm1(self) -> "MpArray":
        """Elementwise exponential minus one."""
        return self._map(_expm1(self.value), lambda: _exp(self.value))

    def log(self) -> "MpArray":
        """Elementwise natural logarithm."""
        return self._map(_log(self.value), lambda: 1 / self.value)

    def log1p(self) -> "MpArray":
        """Elementwise logarithm of one plus the value."""
        return self._map(_log1p(self.value), lambda: 1 / (1 + self.value))

    def sqrt(self) -> "MpArray":
        """Elementwise square root."""
        out = _sqrt(self.value)
        return self._map(out, lambda: 1 / (2 * out))

    def sin(self) -> "MpArray":
        """Elementwise sine."""
        return self._map(_sin(self.value), lambda: _cos(self.value))

    def cos(self) -> "MpArray":
        """Elementwise cosine."""
        return self._map(_cos(self.value), lambda: -_sin(self.value))

    def tanh(self) -> "MpArray":
        """Elementwise hyperbolic tangent."""
        out = _tanh(self.value)
        return self._map(out, lambda: 1 - out * out)

    def sigmoid(self) -> "MpArray":
        """Elementwise 1 / (1 + exp(-x))."""
        out = 1 / (1 + _exp(-self.value))
        return self._map(out, lambda: out * (1 - out))

    def abs(self) -> "MpArray":
        """Elementwise size; the slope at 0 is 0."""
        return self._map(abs(self.value), lambda: np.sign(self.value))

    def clamp(self, min: float) -> "MpArray":  # noqa: A002  # torch's word
        """Elementwise maximum with a number; at the number the slope is 1, as torch has it."""
        return self._map(np.maximum(self.value, mpmath.mpf(min)), lambda: (self.value >= min).astype(int))

    def relu(self) -> "MpArray":
        """Elementwise maximum with zero; the slope at 0 is 0."""
        return self._map(np.maximum(self.value, mpmath.mpf(0)), lambda: (self.value > 0).astype(int))

    def masked_fill(self, mask: np.ndarray, value: float) -> "MpArray":
        """Put a constant where the mask holds."""
        keep = ~np.broadcast_to(mask, np.broadcast_shapes(self.shape, mask.shape))
        full = np.broadcast_to(self.value, keep.shape)
        return MpArray(np.where(keep, full, mpmath.mpf(value)), ((self, lambda g: np.where(keep, g, mpmath.mpf(0))),))

    def sum(self, dim: int, keepdim: bool = False) -> "MpArray":
        """Sum over one axis."""
        out = self.value.sum(axis=dim, keepdims=keepdim)

        def spread(grad: np.ndarray) -> Any:
            return (grad if keepdim else np.expand_dims(grad, dim)) + 0 * self.value

        return MpArray(np.asarray(out, dtype=object), ((self, spread),))

    def mean(self, dim: int, keepdim: bool = False) -> "MpArray":
        """Mean over one axis."""
        return self.sum(dim, keepdim) / self.shape[dim]

    def cumsum(self, dim: int) -> "MpArray":
        """Running sum along an axis."""

        def back(grad: np.ndarray) -> Any:
            return np.flip(np.flip(grad, dim).cumsum(axis=dim), dim)

        return MpArray(self.value.cumsum(axis=dim), ((self, back),))

    def amax(self, dim: int, keepdim: bool = False) -> "MpArray":
        """Largest value along an axis, as a constant: a stabiliser, whose gradient cancels."""
        return MpArray(np.asarray(self.value.max(axis=dim, keepdims=keepdim), dtype=object))

    def detach(self) -> "MpArray":
        """The same values as constants."""
        return MpArray(self.value)

    def transpose(self, first: int, second: int) -> "MpArray":
        """Exchange two axes."""
        return MpArray(np.swapaxes(self.value, first, second), ((self, lambda g: np.swapaxes(g, first, second)),))

    def reshape(self, *shape: int) -> "MpArray":
        """The same elements in another shape."""
        return MpArray(
            self.value.reshape(*shape),
            ((self, lambda g: np.broadcast_to(g, self.value.reshape(*shape).shape).reshape(self.shape)),),
        )

    def expand(self, *shape: int) -> "MpArray":
        """Repeat axes of length one; -1 keeps a length."""
        lead = len(shape) - len(self.shape)
        wanted = tuple(self.shape[i - lead] if n == -1 else n for i, n in enumerate(shape))
        return MpArray(np.broadcast_to(self.value, wanted), ((self, lambda g: g),))

    def flip(self, dim: int) -> "MpArray":
        """Reverse an axis."""
        return MpArray(np.flip(self.value, dim), ((self, lambda g: np.flip(g, dim)),))

    @classmethod
    def joined(cls, parts: Sequence["MpArray"], dim: int) -> "MpArray":
        """Arrays one after the other along an axis."""
        out = np.concatenate([p.value for p in parts], axis=dim)
        ends = np.cumsum([p.shape[dim] for p in parts])

        def part(first: int, last: int) -> Pull:
            return lambda g: np.take(np.broadcast_to(g, out.shape), range(first, last), axis=dim)

        return cls(out, [(p, part(int(e) - p.shape[dim], int(e))) for p, e in zip(parts, ends, strict=True)])

    def backward(self) -> None:
        """Give every array that this scalar depends on its `grad`."""
        order: list[MpArray] = []
        seen: set[int] = set()
        stack: list[tuple[MpArray, bool]] = [(self, False)]
        while stack:  # a loop, since the tape is far deeper than Python's recursion limit
            node, done = stack.pop()
            if done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((parent, False) for parent, _ in node._parents)
        for node in order:
            node.grad = None
        self.grad = np.full(self.value.shape, mpmath.mpf(1), dtype=object)
        for node in reversed(order):
            for parent, pull in node._parents:
                if node.grad is not None:
                    part = _reduce(np.asarray(pull(node.grad), dtype=object), parent.value.shape)
                    parent.grad = part if parent.grad is None else parent.grad + part
