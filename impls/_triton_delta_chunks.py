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

CHUNK = 64
SUB_CHUNK = 16


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of some sequences that lie one after the other in a list of tokens.

    Attributes:
        spans: [chunks, 2] int64: first token of a chunk, and the token after its last.
        ranges: [N, 2] int64: first chunk of a sequence, and the chunk after its last.
    """

    spans: Tensor
    ranges: Tensor

    @property
    def count(self) -> int:
        """The number of chunks."""
        return self.spans.shape[0]


@lru_cache(maxsize=16)
def cut(sizes: tuple[int, ...], device: torch.device) -> Chunks:
    """Cut sequences of these lengths into chunks; an empty sequence has none.

    Kept, since tables are the same in every layer of a model, and a copy to the device would wait for what runs there.
    """
    lengths = torch.tensor(sizes, dtype=torch.int64)
    stops = lengths.cumsum(0)
    counts = (lengths + CHUNK - 1) // CHUNK
    after = counts.cumsum(0)
    sequence = torch.arange(len(sizes)).repeat_interleave(counts)
    first = (stops - lengths)[sequence] + (torch.arange(len(sequence)) - (after - counts)[sequence]) * CHUNK
    spans = torch.stack([first, torch.minimum(first + CHUNK, stops[sequence])], 1)
    return Chunks(spans.to(device), torch.stack([after - counts, after], 1).to(device))


@triton.jit
def span(spans, c):
    """First token (int64) and number of tokens of chunk c."""
    first = tl.load(spans + 2 * c)
    return first, (tl.load(spans + 2 * c + 1) - first).to(tl.int32)
