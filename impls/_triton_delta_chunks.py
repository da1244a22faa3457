# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Chunks of 64 tokens: where each begins and ends, and how a kernel loads and stores the rows of one.

A dense batch and packed sequences are one list of tokens and one table of chunks, none of which straddles two sequences. Rows
beyond the end of a chunk are loaded as zeros and never stored: a zero key writes nothing and a zero log gate does not decay.
"""

from dataclasses import dataclass

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


def cut(lengths: Tensor, device: torch.device) -> Chunks:
    """Cut sequences of these lengths (int64, on the CPU) into chunks; an empty sequence has none."""
    stops = lengths.cumsum(0)
    counts = (lengths + CHUNK - 1) // CHUNK
    after = counts.cumsum(0)
    sequence = torch.arange(len(lengths)).repeat_interleave(counts)
    first = (stops - lengths)[sequence] + (torch.arange(len(sequence)) - (after - counts)[sequence]) * CHUNK
    spans = torch.stack([first, torch.minimum(first + CHUNK, stops[sequence])], 1)
    return Chunks(spans.to(device), torch.stack([after - counts, after], 1).to(device))


def block(width: int, most: int) -> int:
    """The power of two, from 16 to `most`, that covers a width or goes into blocks of it."""
    return min(most, max(16, triton.next_power_of_2(width)))


@triton.jit
def span(spans, c):
    """First token (int64) and number of tokens of chunk c."""
    first = tl.load(spans + 2 * c)
    return first, (tl.load(spans + 2 * c + 1) - first).to(tl.int32)


@triton.jit
def load(x, t, d, n, stride, width, other=0.0):
    """Rows t and columns d of a tile that begins at x; `other` beyond n rows and `width` columns."""
    return tl.load(x + t[:, None] * stride + d[None, :], mask=(t[:, None] < n) & (d[None, :] < width), other=other)


@triton.jit
def store(x, value, t, d, n, stride, width):
    """Store what lies inside n rows and `width` columns, rounded to the dtype of x."""
    inside = (t[:, None] < n) & (d[None, :] < width)
    tl.store(x + t[:, None] * stride + d[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b):
    """The float32 product of operands of one dtype; float32 ones go in three TF32 parts each, which keeps their digits."""
    return tl.dot(a, b, input_precision="tf32x3")
