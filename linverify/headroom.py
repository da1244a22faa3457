"""Headroom: keep what a half-precision kernel computes on the way far from 65504.

An overflow in fp16 on inputs that are too large is no fault of the kernel. Intermediates are bounded by the sums of absolute
values without decay; where a bound is too large, values and upstream gradients are scaled down by a power of two, which
changes no digit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.operator import Canonical

LARGEST = 8192.0


@dataclass(frozen=True, slots=True)
class Factors:
    """Powers of two to multiply by.

    Attributes:
        value: for v and the initial state.
        cotangent: for the upstream gradients of o and of the final state.
    """

    value: float
    cotangent: float


def _factor(bound: float) -> float:
    return 2.0 ** min(0, math.floor(math.log2(LARGEST / bound))) if 0.0 < bound < math.inf else 1.0


def _largest(*tensors: Tensor) -> float:
    return max((float(t.max()) for t in tensors if t.numel()), default=0.0)


def factors(c: Canonical, scale: float, state: Tensor | None, do: Tensor | None, dstate: Tensor | None) -> Factors:
    """Return what to scale by so that every intermediate stays below 8192.

    Args:
        c: the recurrence in float64, [B, T, H, .].
        scale: factor on o.
        state: [N, H, K, V] or None.
        do: [B, T, H, V] or None.
        dstate: [N, H, K, V] or None.
    """
    low_rank = c.beta is not None or c.a is not None
    q, v = c.q.abs(), c.v.abs()
    k = c.k.abs() if c.beta is None else c.beta.abs() * c.k.abs()
    # removals rotate what is stored between key channels: twice the sum of writes covers it for transitions of norm one
    grown = (2.0 if low_rank else 1.0) * torch.einsum("bthk,bthv->bhkv", k, v)
    stored = grown if state is None else grown + _common(state)
    read = scale * torch.einsum("bthk,bhkv->bthv", q, stored)
    if c.bonus is not None:
        read = read + scale * (q * c.bonus.abs() * k).sum(-1, keepdim=True) * v
    value = _factor(_largest(stored, read))
    if do is None and dstate is None:
        return Factors(value, 1.0)
    back = torch.zeros_like(stored)
    if do is not None:
        back = back + (2.0 if low_rank else 1.0) * scale * torch.einsum("bthk,bthv->bhkv", q, do.abs())
    if dstate is not None:
        back = back + _common(dstate)
    bounds = [back, torch.einsum("bthk,bhkv->bthv", k, back), value * torch.einsum("bthv,bhkv->bthk", v, back)]
    if do is not None:
        bounds.append(value * scale * torch.einsum("bthv,bhkv->bthk", do.abs(), stored))
    if low_rank:
        bounds.append(value * torch.einsum("bhkv,bhjv->bhk", back, stored))
    return Factors(value, _factor(_largest(*bounds)))


def _common(state: Tensor) -> Tensor:
    """Largest absolute state over all sequences, [1, H, K, V]."""
    return state.abs().amax(0, keepdim=True)
