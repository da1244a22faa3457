"""The inverse of unit lower triangular matrices in few large products, as a GPU likes them.

Of blocks of 1, 2, 4 ... two neighbours at a time,

    [[P, 0], [-A, Q]]^-1 = [[P^-1, 0], [Q^-1 A P^-1, Q^-1]],

for all blocks at once: X + X A X with the inverse X of the blocks, and of A what lies between two of them. The rounding errors
are those of substitution (Higham, Accuracy and Stability of Numerical Algorithms, section 14.2.2); the series I + A + A^2 ...
has terms far larger than their sum, and would lose as many digits.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@lru_cache(maxsize=32)
def _between(chunk: int, device: torch.device) -> Tensor:
    """What lies between two neighbouring blocks of 1, 2, 4 ... tokens: 1, else 0, [levels, 1, C, C]."""
    index = torch.arange(chunk)
    numbers = [index >> n for n in range(chunk.bit_length() - 1)]
    found = torch.stack([(n[:, None] % 2 == 1) & (n[:, None] - 1 == n) for n in numbers])
    return found[:, None].to(device, torch.float64)


def _inverse(lower: Tensor) -> Tensor:
    found = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    if lower.shape[-1] > 1:
        first, *others = (lower * _between(lower.shape[-1], lower.device)).unbind(0)
        found = found + first
        for between in others:
            found = torch.baddbmm(found, found, torch.bmm(between, found))
    return found


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
        return torch.bmm(torch.bmm(found.mT, grads[0]), found.mT).tril(-1)


def inverse(lower: Tensor) -> Tensor:
    """(I - A)^-1 of strictly lower triangular matrices A.

    Shapes: A and the result [M, C, C], C a power of two.
    """
    found: Tensor = _Inverse.apply(lower)  # type: ignore[no-untyped-call]  # torch's own
    return found
