"""Scores of readers and writers within a chunk, each pair through its own decay for every channel, by halves.

Every later token of a chunk meets an earlier one at the middle of exactly one of the blocks of 2, 4, 8 ... tokens that halving
the chunk makes: the writer decays up to there, the reader from there on, no exponent is ever positive, and a level is a product
of matrices (Yang et al., 2312.06635, section 4.3, has two levels of it). A decay is the sum of the log decays between the two
and of no others, which no difference of longer sums is. Nothing as large as all pairs and channels is ever made.

The adjoint is written out: a gradient of a log decay is what its reader gains or its writer loses, x dx and - y dy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
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


@dataclass(frozen=True, slots=True, eq=False)
class _Decays:
    """All decays of chunks: rows of `_spans`, [M, rows, K].

    Attributes:
        rows: the decays.
        kinds: decays of a reader: one where all readers stand alike.
        chunk: tokens.
    """

    rows: Tensor
    kinds: int
    chunk: int

    @property
    def reads(self) -> Tensor:
        """From the beginning of the chunk to its readers [M, C, kinds, K]."""
        found: Tensor = self.rows[:, -self.chunk * (1 + self.kinds) - 1 : -self.chunk - 1]
        apart: Tensor = found.unflatten(1, (self.chunk, self.kinds))
        return apart

    @property
    def rest(self) -> Tensor:
        """From its writers to its end [M, C, 1, K]."""
        found: Tensor = self.rows[:, -self.chunk - 1 : -1, None]
        return found

    @property
    def levels(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Half a block's tokens h, decays of readers [M, blocks, h, kinds, K], and of writers [M, blocks, h, 1, K]."""
        at, half, own = 0, 1, self.chunk // 2
        while half < self.chunk:
            blocks = own // half
            reads = self.rows[:, at : at + own * self.kinds].unflatten(1, (blocks, half, self.kinds))
            at += own * self.kinds
            yield half, reads, self.rows[:, at : at + own].unflatten(1, (blocks, half, 1))
            at += own
            half *= 2


def _decays(gates: Tensor, readers: Readers) -> _Decays:
    befores = tuple(r.before for r in readers)
    alike = len(set(befores)) == 1
    kinds = befores[:1] if alike else befores
    chunk = gates.shape[1]
    return _Decays((_spans(chunk, kinds, gates.device) @ gates).exp_(), len(kinds), chunk)


def _half(x: Tensor, half: int, number: int) -> Tensor:
    """The first or second halves [M, blocks, h, r, K] of blocks of tokens of x [M, C, r, K]."""
    blocks: Tensor = x.unflatten(1, (-1, 2, half))
    return blocks[:, :, number]


def _square(scores: Tensor, half: int) -> Tensor:
    """A level's part of scores [r, w, M, C, C]: reader, writer and block last, [r, w, M, h, h, blocks]."""
    cut: Tensor = scores.unflatten(-1, (-1, 2, half)).unflatten(-4, (-1, 2, half))
    return cut[:, :, :, :, 1, :, :, 0].diagonal(dim1=3, dim2=5)


def _flat(x: Tensor) -> Tensor:
    """[M, blocks, h, r, K] as matrices [M * blocks, h * r, K]."""
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


class _Met(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, readers: Readers, gates: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(gates, x, y)
        ctx.readers = readers
        decays = _decays(gates, readers)
        M, chunk, r, _ = x.shape
        w = y.shape[2]
        scores = x.new_zeros(r, w, M, chunk, chunk)
        for half, reads, writes in decays.levels:
            from_middle, to_middle = _flat(_half(x, half, 1) * reads), _flat(_half(y, half, 0) * writes)
            found = (from_middle @ to_middle.mT).reshape(M, -1, half, r, half, w)
            _square(scores, half).copy_(found.permute(3, 5, 0, 2, 4, 1))
        for n, reader in enumerate(readers):
            if reader.own:
                own = (x[:, :, n, None] * y).sum(-1)
                scores[n].diagonal(dim1=-2, dim2=-1).copy_(own.permute(2, 0, 1))
        return x * decays.reads, y * decays.rest, decays.rows[:, -1].clone(), scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        gates, x, y = ctx.saved_tensors
        decays = _decays(gates, ctx.readers)
        dx, dy = grads[0] * decays.reads, grads[1] * decays.rest
        whole = (y * dy).sum((1, 2)) + grads[2] * decays.rows[:, -1]
        for half, reads, writes in decays.levels:
            later, earlier = _half(x, half, 1), _half(y, half, 0)
            given = _square(grads[3], half).permute(2, 5, 3, 0, 4, 1).reshape(-1, half * x.shape[2], half * y.shape[2])
            from_writers = (given @ _flat(earlier * writes)).reshape(later.shape)
            from_readers = (given.mT @ _flat(later * reads)).reshape(earlier.shape)
            _half(dx, half, 1).addcmul_(from_writers, reads)
            _half(dy, half, 0).addcmul_(from_readers, writes)
        gained = x * dx
        index = torch.arange(gates.shape[1], device=gates.device)
        later_or_same = (index[:, None] <= index).to(gates.dtype)
        at = [n for n, reader in enumerate(ctx.readers) if not reader.before]
        upto = (gained[:, :, at].sum(2) if at else 0.0) - (y * dy).sum(2)
        dgates = later_or_same @ upto + whole[:, None]
        if len(at) < len(ctx.readers):
            before = [n for n in range(len(ctx.readers)) if n not in at]
            dgates = dgates + later_or_same.triu(1) @ gained[:, :, before].sum(2)
        for n, reader in enumerate(ctx.readers):
            if reader.own:  # without a decay: no gradient of one, and none of its rounding
                own = grads[3][n].diagonal(dim1=-2, dim2=-1).permute(1, 2, 0)[..., None]
                dx[:, :, n] += (own * y).sum(2)
                dy += own * x[:, :, n, None]
        return None, dgates, dx, dy


def meet(readers: Readers, gates: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Readers decayed from the beginning of their chunk, writers to its end, the chunk's whole decay, and all scores.

    Shapes: gates [M, C, K], the log decays, C a power of two; x [M, C, readers, K] and y [M, C, writers, K]; the results
    [M, C, readers, K], [M, C, writers, K], [M, K] and [readers, writers, M, C, C], 0 where a reader does not see the write.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _Met.apply(readers, gates, x, y)  # type: ignore[no-untyped-call]
    return found
