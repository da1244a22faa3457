"""Arrays of mpmath numbers that spell arithmetic as torch tensors do, and differentiate in reverse.

An operator's statement uses only what both have in common, so the same statement runs in float64 and in 50 digits.
"""

from collections.abc import Callable, Iterable
from typing import Any

import mpmath
import numpy as np

_exp = np.frompyfunc(mpmath.exp, 1, 1)
_log = np.frompyfunc(mpmath.log, 1, 1)
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

    def exp(self) -> "MpArray":
        """Elementwise exponential."""
        out = np.asarray(_exp(self.value), dtype=object)
        return MpArray(out, ((self, lambda g: g * out),))

    def log(self) -> "MpArray":
        """Elementwise natural logarithm."""
        return MpArray(np.asarray(_log(self.value), dtype=object), ((self, lambda g: g / self.value),))

    def sum(self, axis: int) -> "MpArray":
        """Sum over one axis."""
        out = self.value.sum(axis=axis)
        return MpArray(np.asarray(out, dtype=object), ((self, lambda g: np.expand_dims(g, axis) + 0 * self.value),))

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
