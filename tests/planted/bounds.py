"""A kernel whose gradients leave the bound of its mechanism, and are right wherever nothing is small."""

import torch
from torch import Tensor

EPS = 1e-6


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scores [B, H, T, T] of queries and keys over 1 + elu, later tokens left out."""
    phi = [torch.where(x > 0, x + 1, x.clamp(max=0).exp()) for x in (q, k)]
    return (torch.einsum("bihk,bjhk->bhij", *phi) * scale).tril()


class _Divided(torch.autograd.Function):
    """Weighted values over the sum of the weights plus eps; the backward pass divides by the sum alone."""

    @staticmethod
    def forward(ctx, s: Tensor, v: Tensor) -> Tensor:
        o = (s @ v) / (s.sum(-1, keepdim=True) + EPS)
        ctx.save_for_backward(s, v, o)
        return o

    @staticmethod
    def backward(ctx, do: Tensor) -> tuple[Tensor, Tensor]:
        s, v, o = ctx.saved_tensors
        total = s.sum(-1, keepdim=True)
        ds = (do @ v.mT - (do * o).sum(-1, keepdim=True)) / total
        return ds.tril(), (s / (total + EPS)).mT @ do


def eps_lost_backward(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Gradients by a score grow like 1 / Z without end, where 1 / (Z + eps) is right."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o = _Divided.apply(_weights(q.float(), k.float(), scale), v.float().transpose(1, 2))
    return o.transpose(1, 2).to(v.dtype)
