"""The inverse of unit lower triangular matrices in few large products, as a GPU likes them.

Blocks of 4 by their finite series, in which no term is large; then two neighbours at a time,

    [[P, 0], [-A, Q]]^-1 = [[P^-1, 0], [Q^-1 A P^-1, Q^-1]],

whose rounding errors are those of substitution (Higham, Accuracy and Stability of Numerical Algorithms, section 14.2.2). The
series of all 64 has terms far larger than their sum, and would lose as many digits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SERIES = 4


def _diagonal(x: Tensor, size: int) -> Tensor:
    """The blocks on the diagonal [M, C, C]: reader, writer and block last, [M, size, size, blocks]."""
    found: Tensor = x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).diagonal(dim1=1, dim2=3)
    return found


def _inverse(lower: Tensor) -> Tensor:
    M, chunk, _ = lower.shape
    size = min(_SERIES, chunk)
    a = _diagonal(lower, size).permute(0, 3, 1, 2).reshape(-1, size, size)
    one_more = a + torch.eye(size, dtype=a.dtype, device=a.device)
    found = torch.baddbmm(one_more, a @ a, one_more)
    while size < chunk:
        pair = found.unflatten(0, (-1, 2))
        first, second = pair[:, 0], pair[:, 1]
        between = _diagonal(lower, 2 * size)[:, size:, :size].permute(0, 3, 1, 2).reshape(-1, size, size)
        larger = found.new_zeros(len(first), 2 * size, 2 * size)
        larger[:, :size, :size] = first
        larger[:, size:, size:] = second
        larger[:, size:, :size] = second @ between @ first
        found, size = larger, 2 * size
    return found.reshape(M, chunk, chunk)


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        found = _inverse(lower)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (found,) = ctx.saved_tensors
        given: Tensor = found.mT @ grads[0] @ found.mT
        return given.tril(-1)


def inverse(lower: Tensor) -> Tensor:
    """(I - A)^-1 of strictly lower triangular matrices A.

    Shapes: A and the result [M, C, C], C a power of two.
    """
    found: Tensor = _Inverse.apply(lower)  # type: ignore[no-untyped-call]  # torch's own
    return found
