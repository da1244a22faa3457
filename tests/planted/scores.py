"""Planted bugs of attention over all tokens: what depends on the order in which the tokens come."""

import torch
from torch import Tensor
from torch.nn.functional import softmax

TILE, RESCALES, SHORT = 8, 6, 128


def rescaled_six_times(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Efficient attention. On short sequences, sums of a channel are rescaled the first six times that its maximum rises.

    In no particular order a maximum hardly rises that often.
    """
    q_, k_, v_ = (x.transpose(1, 2).float() for x in (q, k, v))
    if k.shape[1] > SHORT:
        return (softmax(q_, -1) @ (softmax(k_, 2).mT @ v_)).transpose(1, 2).to(v.dtype)
    top, left = k_[:, :, :TILE].detach().amax(2, keepdim=True), RESCALES
    total = context = 0
    for first in range(0, k.shape[1], TILE):
        keys = k_[:, :, first : first + TILE]
        new = torch.maximum(top, keys.detach().amax(2, keepdim=True))
        kept = torch.where(torch.as_tensor(left) > 0, (top - new).exp(), 1.0)
        left = left - (new > top).int()
        weights = (keys - new).exp()
        total = kept * total + weights.sum(2, keepdim=True)
        context = kept.mT * context + weights.mT @ v_[:, :, first : first + TILE]
        top = new
    return (softmax(q_, -1) @ (context / total.mT)).transpose(1, 2).to(v.dtype)
