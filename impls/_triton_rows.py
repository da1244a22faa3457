# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Tiles of rows: how kernels load and store them with lengths that no block divides, and how they multiply them."""

import triton
import triton.language as tl


def block(width: int, most: int) -> int:
    """The power of two, from 16 to `most`, that covers a width or goes into blocks of it."""
    return min(most, max(16, triton.next_power_of_2(width)))


@triton.jit
def load(x, t, d, n, stride, width, other=0.0):
    """Rows t and columns d of a tile that begins at x; `other` beyond n rows and `width` columns."""
    return tl.load(x + t[:, None] * stride + d[None, :], mask=(t[:, None] < n) & (d[None, :] < width), other=other)


@triton.jit
def load_turned(x, t, d, n, stride, width):
    """The same tile with its rows as columns, [d, t]; zeros outside."""
    return tl.load(x + t[None, :] * stride + d[:, None], mask=(t[None, :] < n) & (d[:, None] < width), other=0.0)


@triton.jit
def store(x, value, t, d, n, stride, width):
    """Store what lies inside n rows and `width` columns, rounded to the dtype of x."""
    inside = (t[:, None] < n) & (d[None, :] < width)
    tl.store(x + t[:, None] * stride + d[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def store_turned(x, value, t, d, n, stride, width):
    """Store a tile [d, t] as rows t and columns d."""
    inside = (t[None, :] < n) & (d[:, None] < width)
    tl.store(x + t[None, :] * stride + d[:, None], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b):
    """The product of operands of one dtype, summed in float32; float32 operands lose the digits that TF32 does not have."""
    return tl.dot(a, b, input_precision="tf32")
