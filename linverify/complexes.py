"""Complex numbers as pairs (real, imaginary) of arrays, so that statements stay in real arithmetic of any precision."""

import math

import mpmath
import numpy as np

from linverify.arithmetic import MpArray
from linverify.formulas import cat, later
from linverify.operator import Array, Inputs

Complex = tuple[Array, Array]


def plus(a: Complex, b: Complex) -> Complex:
    """Sum."""
    return a[0] + b[0], a[1] + b[1]


def minus(a: Complex, b: Complex) -> Complex:
    """Difference."""
    return a[0] - b[0], a[1] - b[1]


def times(a: Complex, b: Complex) -> Complex:
    """Product."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def scaled(a: Complex, by: Array) -> Complex:
    """Product with a real number."""
    return a[0] * by, a[1] * by


def conjugate(a: Complex) -> Complex:
    """The conjugate."""
    return a[0], -a[1]


def inverse(a: Complex) -> Complex:
    """1 / a."""
    size = a[0] * a[0] + a[1] * a[1]
    return a[0] / size, -a[1] / size


def exp(a: Complex) -> Complex:
    """The exponential."""
    size = a[0].exp()
    return size * a[1].cos(), size * a[1].sin()


def expm1(a: Complex) -> Complex:
    """The exponential less one, whose digits last near zero: cos y - 1 is taken as -2 sin(y/2)^2."""
    half = (a[1] * 0.5).sin()
    return a[0].expm1() * a[1].cos() - 2 * half * half, a[0].exp() * a[1].sin()


def total(a: Complex, dim: int, *, keepdim: bool = False) -> Complex:
    """Sum along an axis."""
    return a[0].sum(dim, keepdim=keepdim), a[1].sum(dim, keepdim=keepdim)


def at(a: Complex, index: object) -> Complex:
    """Both parts, indexed alike."""
    return a[0][index], a[1][index]


def entering(x: Inputs) -> Complex | None:
    """The initial state [.., 2], whose last axis holds real and imaginary part; None where none is given."""
    state = x.get("initial_state")
    return None if state is None else (state[..., 0], state[..., 1])


def parted(a: Complex) -> Array:
    """Real and imaginary part along a new last axis, as a state is handed on."""
    return cat([a[0][..., None], a[1][..., None]])


def transposed(a: Complex, first: int, second: int) -> Complex:
    """Two axes exchanged."""
    return a[0].transpose(first, second), a[1].transpose(first, second)


def product(a: Complex, b: Complex) -> Complex:
    """Matrix product."""
    return a[0] @ b[0] - a[1] @ b[1], a[0] @ b[1] + a[1] @ b[0]


def pi(like: Array) -> Array:
    """The number in the precision of `like`."""
    return +mpmath.pi if isinstance(like, MpArray) else math.pi


def toeplitz(kernel: Array) -> Array:
    """The response to a pulse, [.., T], as the matrix [.., T, T] that convolves: kernel[t - s] at (t, s), 0 for s > t."""
    T = kernel.shape[-1]
    gap = np.abs(np.arange(T)[:, None] - np.arange(T)).tolist()
    return kernel[..., gap].masked_fill(later(T, T, kernel), 0.0)
