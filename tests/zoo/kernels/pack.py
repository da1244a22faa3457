"""What the kernels of the zoo share: rows of tokens with the borders of their sequences, and the chunks between these."""

from itertools import pairwise

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in the arithmetic's dtype: float32, or float64 where it comes so."""
    return x if x.dtype == torch.float64 else x.float()


def rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """[B, T, ...] as [B * T, ...] in the arithmetic's dtype."""
    return tuple(wide(x).flatten(0, 1) for x in tensors)


def borders(x: Tensor, cu_seqlens: Tensor | None) -> list[int]:
    """Where the sequences in [B * T] rows begin, and the end of the last."""
    B, T = x.shape[:2]
    return [T * b for b in range(B + 1)] if cu_seqlens is None else cu_seqlens.tolist()


def chunk_table(ends: list[int], size: int) -> list[tuple[int, int, int]]:
    """(sequence, first token, end) of every chunk; a sequence without tokens has none."""
    return [
        (n, first, min(first + size, end))
        for n, (begin, end) in enumerate(pairwise(ends))
        for first in range(begin, end, size)
    ]


def first_states(initial: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """A copy of the initial states [N, H, K, V], or zeros."""
    return like.new_zeros(shape) if initial is None else wide(initial).clone()


def later(size: int) -> Tensor:
    """[size, size]: True above the diagonal."""
    return torch.ones(size, size, dtype=torch.bool).triu(1)
