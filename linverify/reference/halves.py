"""Scores of readers and writers within a chunk, each pair through its own decay for every channel, by halves.

Every later token of a chunk meets an earlier one at the middle of exactly one of the blocks of 2, 4, 8 ... tokens that halving
the chunk makes: the writer decays up to there, the reader from there on, no exponent is ever positive, and a level is a product
of matrices (Yang et al., 2312.06635, section 4.3, has two levels of it). A decay is the sum of the log decays between the two
and of no others, which no difference of longer sums is. Nothing as large as all pairs and channels is ever made.

The adjoint is written out: a gradient of a log decay is what its reader gains or its writer loses, x dx and - y dy. On a GPU
small cases take the time of the calls, not of the arithmetic: hence views made in one call each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class Reader:
    """Where a reader stands.

    Attributes:
        before: it reads before the decay of its own token.
        own: it reads what its own token writes.
    """

    before: bool
    own: bool


Readers = tuple[Reader, ...]


@lru_cache(maxsize=32)
def _spans(chunk: int, befores: tuple[bool, ...], device: torch.device) -> Tensor:
    """Which log decays a decay sums up [rows, C]: level after level readers and writers; those of the chunk; its total."""
    spans = []
    for half in (1 << n for n in range(chunk.bit_length() - 1)):
        middles = range(half, chunk, 2 * half)
        spans += [(m, i + (not b)) for m in middles for i in range(m, m + half) for b in befores]
        spans += [(j + 1, m) for m in middles for j in range(m - half, m)]
    spans += [(0, i + (not b)) for i in range(chunk) for b in befores]
    spans += [(j + 1, chunk) for j in range(chunk)] + [(0, chunk)]
    first, stop = torch.tensor(spans)[:, :, None].unbind(1)
    index = torch.arange(chunk)
    return ((index >= first) & (index < stop)).to(device, torch.float64)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """M chunks of C tokens with K channels; readers, writers, and different decays of readers; and the views that they make."""

    M: int
    C: int
    K: int
    readers: int
    writers: int
    kinds: int

    def half(self, x: Tensor, half: int, number: int) -> Tensor:
        """The first or second halves [M, blocks, h, r, K] of blocks of tokens of x [M, C, r, K]."""
        each, r = x.stride(1), x.shape[2]
        strides = (x.stride(0), 2 * half * each, each, x.stride(2), 1)
        start = x.storage_offset() + number * half * each
        return x.as_strided((self.M, self.C // (2 * half), half, r, self.K), strides, start)

    def square(self, scores: Tensor, half: int) -> Tensor:
        """What second halves read of first ones [M, blocks, h, readers, h, writers]; of scores [readers, writers, M, C, C]."""
        one, C = self.C * self.C, self.C
        strides = (one, 2 * half * (C + 1), C, self.writers * self.M * one, 1, self.M * one)
        sizes = (self.M, C // (2 * half), half, self.readers, half, self.writers)
        return scores.as_strided(sizes, strides, scores.storage_offset() + half * C)

    def decays(self, rows: Tensor, start: int, half: int, kinds: int) -> Tensor:
        """Rows of decays from `start` on as [M, blocks, h, kinds, K]."""
        K = self.K
        strides = (rows.stride(0), half * kinds * K, kinds * K, K, 1)
        return rows.as_strided((self.M, self.C // (2 * half), half, kinds, K), strides, start * K)

    def levels(self, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Half a block's tokens h, and the decays of readers and of writers [M, blocks, h, kinds or 1, K]."""
        start, half, step = 0, 1, self.C // 2
        while half < self.C:
            reads = self.decays(rows, start, half, self.kinds)
            yield half, reads, self.decays(rows, start + step * self.kinds, half, 1)
            start, half = start + step * (self.kinds + 1), 2 * half

    def through(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the beginning to readers [M, C, kinds, K], from writers to the end [M, C, 1, K], and the whole [M, K]."""
        rest = rows.shape[1] - 1 - self.C
        reads = rows[:, rest - self.C * self.kinds : rest].view(self.M, self.C, self.kinds, self.K)
        return reads, rows[:, rest:-1, None], rows[:, -1]


def _decays(gates: Tensor, readers: Readers) -> tuple[Tensor, int]:
    """All decays of chunks, rows of `_spans` [M, rows, K], and how many a reader has: one where all stand alike."""
    befores = tuple(r.before for r in readers)
    kinds = befores[:1] if len(set(befores)) == 1 else befores
    spans = _spans(gates.shape[1], kinds, gates.device).expand(len(gates), -1, -1)
    return torch.bmm(spans, gates).exp_(), len(kinds)


class _Met(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, readers: Readers, gates: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        rows, kinds = _decays(gates, readers)
        M, C, K = gates.shape
        sizes = _Sizes(M, C, K, x.shape[2], y.shape[2], kinds)
        scores = x.new_zeros(sizes.readers, sizes.writers, sizes.M, sizes.C, sizes.C)
        met = []
        for half, reads, writes in sizes.levels(rows):
            from_middle = (sizes.half(x, half, 1) * reads).view(-1, half * sizes.readers, sizes.K)
            to_middle = (sizes.half(y, half, 0) * writes).view(-1, half * sizes.writers, sizes.K)
            square = sizes.square(scores, half)
            square.copy_(torch.bmm(from_middle, to_middle.mT).view(square.shape))
            met += [from_middle, to_middle]
        for n, reader in enumerate(readers):
            if reader.own:
                own = (x[:, :, n, None] * y).sum(-1)
                scores[n].diagonal(dim1=-2, dim2=-1).copy_(own.permute(2, 0, 1))
        ctx.save_for_backward(rows, x, y, *met)
        ctx.readers, ctx.sizes = readers, sizes
        to_reads, from_writes, whole = sizes.through(rows)
        return x * to_reads, y * from_writes, whole, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        rows, x, y, *met = ctx.saved_tensors
        sizes, dscores = ctx.sizes, grads[3].contiguous()
        to_reads, from_writes, whole = sizes.through(rows)
        dx, dy = grads[0].contiguous() * to_reads, grads[1].contiguous() * from_writes
        dwhole = (y * dy).sum((1, 2)) + grads[2] * whole
        for (half, reads, writes), from_middle, to_middle in zip(sizes.levels(rows), met[::2], met[1::2], strict=True):
            given = sizes.square(dscores, half).reshape(len(from_middle), from_middle.shape[1], to_middle.shape[1])
            later, earlier = sizes.half(dx, half, 1), sizes.half(dy, half, 0)
            later.addcmul_(torch.bmm(given, to_middle).view(later.shape), reads)
            earlier.addcmul_(torch.bmm(given.mT, from_middle).view(earlier.shape), writes)
        gained, lost = x * dx, (y * dy).sum(2)
        upto = [n for n, reader in enumerate(ctx.readers) if not reader.before]
        before = [n for n, reader in enumerate(ctx.readers) if reader.before]
        index = torch.arange(sizes.C, device=x.device)
        later = (index[:, None] <= index).to(x.dtype).expand(sizes.M, -1, -1)
        dgates = torch.baddbmm(dwhole[:, None], later, _some(gained, upto) - lost if upto else -lost)
        if before:
            dgates.baddbmm_(later.triu(1), _some(gained, before))
        for n, reader in enumerate(ctx.readers):
            if reader.own:  # without a decay: no gradient of one, and none of its rounding
                for w, own in enumerate(dscores[n].diagonal(dim1=-2, dim2=-1)[..., None]):
                    dx[:, :, n].addcmul_(own, y[:, :, w])
                    dy[:, :, w].addcmul_(own, x[:, :, n])
        return None, dgates, dx, dy


def _some(x: Tensor, numbers: Sequence[int]) -> Tensor:
    """The sum of some readers' [M, C, r, K]."""
    return reduce(torch.add, [x.select(2, n) for n in numbers])


def meet(readers: Readers, gates: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Readers decayed from the beginning of their chunk, writers to its end, the chunk's whole decay, and all scores.

    Shapes: gates [M, C, K], the log decays, C a power of two; x [M, C, readers, K] and y [M, C, writers, K]; the results
    [M, C, readers, K], [M, C, writers, K], [M, K] and [readers, writers, M, C, C], 0 where a reader does not see the write.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _Met.apply(readers, gates, x.contiguous(), y.contiguous())  # type: ignore[no-untyped-call]
    return found
