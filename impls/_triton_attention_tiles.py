# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Tiles of tokens for attention: where they lie, which keys a tile of queries passes over, and which of them it may see.

A dense batch and packed sequences are one table of tiles, none of which straddles two sequences.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr


@lru_cache(maxsize=16)
def tiles(lengths: tuple[int, ...], side: int, device: torch.device) -> Tensor:
    """Of each tile of `side` tokens [tiles, 3] int64: its sequence's first token, its own first position, the length.

    Kept, since it is the same in every layer of a model, and a copy to the device would wait for what runs there.
    """
    n = torch.tensor(lengths, dtype=torch.int64)
    counts = (n + side - 1) // side
    sequence = torch.arange(len(n)).repeat_interleave(counts)
    within = torch.arange(len(sequence)) - (counts.cumsum(0) - counts)[sequence]
    return torch.stack([(n.cumsum(0) - n)[sequence], within * side, n[sequence]], 1).to(device)


@triton.jit
def tile(table, p):
    """First token of the sequence (int64), the tile's own first position in it, and the sequence's length."""
    table += 3 * p
    return tl.load(table), tl.load(table + 1).to(tl.int32), tl.load(table + 2).to(tl.int32)


@triton.jit
def keys_of(at, T, window, CAUSAL: constexpr, WINDOWED: constexpr, BT: constexpr, BS: constexpr):
    """First position and end of the keys that some query from `at` to at + BT sees; the first is a multiple of BS."""
    first = tl.maximum(at - window + 1, 0) // BS * BS if WINDOWED else at * 0
    stop = tl.minimum(at + BT - 1 + window, T) if WINDOWED else T
    return first, tl.minimum(at + BT, stop) if CAUSAL else stop


@triton.jit
def queries_of(at, T, window, CAUSAL: constexpr, WINDOWED: constexpr, BT: constexpr, BS: constexpr):
    """First position and end of the queries that see some key from `at` to at + BS; the first is a multiple of BT."""
    first = tl.maximum(at - window + 1, 0) // BT * BT if WINDOWED else at * 0
    stop = tl.minimum(at + BS - 1 + window, T) if WINDOWED else T
    return at // BT * BT if CAUSAL else first, stop


@triton.jit
def seen(i, j, T, window, CAUSAL: constexpr, WINDOWED: constexpr):
    """Whether query i sees key j: [queries, keys]."""
    found = (i[:, None] < T) & (j[None, :] < T)
    if CAUSAL:
        found = found & (j[None, :] <= i[:, None])
    if WINDOWED:
        found = found & (i[:, None] - j[None, :] < window) & (j[None, :] - i[:, None] < window)
    return found
