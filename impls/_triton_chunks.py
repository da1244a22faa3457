# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Chunks of 64 tokens: where each begins and ends.

A dense batch and packed sequences are one list of tokens and one table of chunks, none of which straddles two sequences. Rows
beyond the end of a chunk are loaded as zeros: a zero key writes nothing and a zero log gate does not decay.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

CHUNK = 64
SUB_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of some sequences that lie one after the other in a list of tokens; all int64.

    Attributes:
        spans: [chunks, 2] first token of a chunk, and the token after its last.
        starts: [N + 1] first token of a sequence.
        slots: [N + 1] first chunk of a sequence.
    """

    spans: Tensor
    starts: Tensor
    slots: Tensor

    @property
    def count(self) -> int:
        """The number of chunks."""
        return self.spans.shape[0]

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return self.starts.shape[0] - 1


@lru_cache(maxsize=16)
def cut(sizes: tuple[int, ...], device: torch.device) -> Chunks:
    """Cut sequences of these lengths into chunks; an empty sequence has none.

    Kept, since tables are the same in every layer of a model, and a copy to the device would wait for what runs there.
    """
    lengths = torch.tensor(sizes, dtype=torch.int64)
    counts = (lengths + CHUNK - 1) // CHUNK
    starts, slots = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (lengths, counts))
    sequence = torch.arange(len(sizes)).repeat_interleave(counts)
    first = starts[sequence] + (torch.arange(len(sequence)) - slots[sequence]) * CHUNK
    spans = torch.stack([first, torch.minimum(first + CHUNK, starts[sequence + 1])], 1)
    return Chunks(spans.to(device), starts.to(device), slots.to(device))


@triton.jit
def span(spans, c):
    """First token (int64) and number of tokens of chunk c."""
    first = tl.load(spans + 2 * c)
    return first, (tl.load(spans + 2 * c + 1) - first).to(tl.int32)


@triton.jit
def walk(starts, slots, p):
    """First token of sequence p, the token after its last, its first chunk and the chunk after its last (int64)."""
    return tl.load(starts + p), tl.load(starts + p + 1), tl.load(slots + p), tl.load(slots + p + 1)


@triton.jit
def step(start, stop, slot, c, C: constexpr):
    """First token and number of tokens of chunk c of a sequence: known without a load, so that loads of it can begin early."""
    first = start + (c - slot) * C
    return first, tl.minimum(stop - first, C).to(tl.int32)
