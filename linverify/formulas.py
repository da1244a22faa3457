"""Formulas that statements share, in whatever arithmetic: torch tensors or `linverify.arithmetic.MpArray`.

They are spelled out in sums, products and elementary functions, because the error model perturbs each of these: a fused softmax
would hide where a kernel rounds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

from linverify.arithmetic import MpArray
from linverify.operator import Array


def cat(parts: Sequence[Array], dim: int = -1) -> Array:
    """Arrays one after the other along an axis."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts), dim)
    return MpArray.joined(parts, dim)


def stack(parts: Sequence[Array], dim: int) -> Array:
    """Arrays side by side along a new axis."""
    index = (slice(None),) * dim + (None,)
    return cat([p[index] for p in parts], dim)


def where(mask: Array, yes: Array, no: Array) -> Array:
    """`yes` where the mask holds, else `no`; neither may be infinite."""
    if isinstance(yes, torch.Tensor):
        return torch.where(mask, yes, no)
    return yes.masked_fill(~mask, 0) + no.masked_fill(mask, 0)


def positive(x: Array) -> Array:
    """The mask x > 0."""
    return x > 0 if isinstance(x, torch.Tensor) else np.asarray(x.value > 0, dtype=bool)


def smallest_normal(like: Array) -> float:
    """The smallest number above zero that keeps all digits in the arithmetic of `like`; 0 where there is none."""
    return torch.finfo(like.dtype).tiny if isinstance(like, torch.Tensor) else 0.0


def mask_like(mask: np.ndarray, like: Array) -> Array:
    """A constant mask in the arithmetic of `like`."""
    return torch.from_numpy(mask).to(like.device) if isinstance(like, torch.Tensor) else mask


def later(rows: int, columns: int, like: Array, *, strict: bool = False) -> Array:
    """Mask [rows, columns] of j > i, or of j >= i (strict): what a causal row must not see."""
    return mask_like(np.triu(np.ones((rows, columns), dtype=bool), 0 if strict else 1), like)


def zeros_like(x: Array) -> Array:
    """Zeros of the same shape, without a history."""
    return torch.zeros_like(x) if isinstance(x, torch.Tensor) else MpArray(0 * x.value)


def ones_like(x: Array) -> Array:
    """Ones of the same shape, without a history."""
    return torch.ones_like(x) if isinstance(x, torch.Tensor) else MpArray(0 * x.value + 1)


def maximum(x: Array, y: Array) -> Array:
    """Elementwise maximum; where both are equal the slope goes to y."""
    return torch.where(x > y, x, y) if isinstance(x, torch.Tensor) else where(positive(x - y), x, y)


def softmax(x: Array, dim: int = -1, mask: Array | None = None) -> Array:
    """exp(x) over its sum along an axis; masked entries (where the mask holds) are 0, a row that is all masked too."""
    if mask is None:
        e = (x - x.detach().amax(dim, keepdim=True)).exp()
        return e / e.sum(dim, keepdim=True)
    top = x.detach().masked_fill(mask, -np.inf).amax(dim, keepdim=True).clamp(min=-(2.0**100))
    e = (x - top).masked_fill(mask, -np.inf).exp()
    return e / e.sum(dim, keepdim=True).clamp(min=2.0**-100)


_SUMMED_ELU: ContextVar[bool] = ContextVar("_SUMMED_ELU", default=False)


@contextmanager
def summing_elu(summed: bool) -> Iterator[None]:
    """Within, 1 + elu is summed up or not: as by a kernel that calls its library's elu."""
    token = _SUMMED_ELU.set(summed)
    try:
        yield
    finally:
        _SUMMED_ELU.reset(token)


def elu1(x: Array) -> Array:
    """1 + elu(x): x + 1 above zero, exp(x) below; Katharopoulos et al. 2020, arXiv:2006.16236, eq. 7.

    As a sum it has no digits left of what is less than 6e-8 in float32, and is 0 below x = -17.
    """
    above = positive(x)
    below = x.masked_fill(above, 0)
    return where(above, x + 1, below.expm1() + 1 if _SUMMED_ELU.get() else below.exp())


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), without overflow."""
    return x.relu() + (-x.abs()).exp().log1p()


def logsigmoid(x: Array) -> Array:
    """Log of the sigmoid."""
    return -softplus(-x)


def rms_norm(x: Array, eps: float) -> Array:
    """X / sqrt(mean x^2 + eps) along the last axis; Zhang and Sennrich 2019, arXiv:1910.07467."""
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


def layer_norm(x: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) along the last axis, without weights; Ba et al. 2016, arXiv:1607.06450."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / ((centred * centred).mean(-1, keepdim=True) + eps).sqrt()


def unit(x: Array, eps: float = 0.0) -> Array:
    """X / sqrt(|x|^2 + eps) along the last axis."""
    return x / ((x * x).sum(-1, keepdim=True) + eps).sqrt()


def heads_first(x: Array) -> Array:
    """[B, T, H, D] to [B, H, T, D]; its own inverse."""
    return x.transpose(1, 2)
