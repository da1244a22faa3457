"""Scores of readers and writers within a chunk, each pair through its own decay for every channel.

Formed pairwise no exponent is positive, at the price of an element for each pair and channel. Here nothing of that size is kept
for the backward pass: the decays are formed again, and a gradient of a log decay is what its reader gains or its writer loses,
x dx and - y dy. On a GPU the time is that of the memory they pass through.
"""

from typing import Any

import torch
from torch import Tensor


def decays(reader: Tensor, writer: Tensor, mask: Tensor) -> Tensor:
    """Decays exp(R_i - G_j) where the mask [C, C] holds, else 0: [N, n, C, C, D] of log decays [N, n, C, D]."""
    gap = reader[..., :, None, :] - writer[..., None, :, :]
    return gap.masked_fill_(~mask[..., None], -torch.inf).exp_()


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, reader: Tensor, writer: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, reader, writer, mask)
        found = decays(reader, writer, mask).mul_(x[..., :, None, :]).mul_(y[..., None, :, :])
        return found.sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, y, reader, writer, mask = ctx.saved_tensors
        given = decays(reader, writer, mask).mul_(grads[0][..., None])
        dx = (given * y[..., None, :, :]).sum(-2)
        dy = given.mul_(x[..., :, None, :]).sum(-3)
        return dx, dy, x * dx, -(y * dy), None


def pairs(x: Tensor, y: Tensor, reader: Tensor, writer: Tensor, mask: Tensor) -> Tensor:
    """Scores sum_d x_id y_jd exp(R_id - G_jd) where the mask holds, else 0.

    Shapes: x, y, reader, writer [N, n, C, D]; mask [C, C]; the result [N, n, C, C].
    """
    found: Tensor = _Pairs.apply(x, y, reader, writer, mask)  # type: ignore[no-untyped-call]  # torch's own
    return found
