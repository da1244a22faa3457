"""The chunkwise float64 reference as a GPU likes it: larger chunks, all of them at once, and few operations that are small.

The mathematics is that of ``linverify.reference.chunkwise``; chunks are of 64 tokens, so that their states weigh as much as the
tokens themselves. Scores with a decay per channel are formed by halves, the triangular systems inverted block by block, and
states at the boundaries taken through blocks of chunks, each with its adjoint written out; the rest is differentiated
automatically.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.fold import Rows
from linverify.reference.blocks import entering
from linverify.reference.halves import Reader, meet
from linverify.reference.inverse import inverse

CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Met:
    """Readers and writers of chunks, decayed, [M, C, K] each; the whole decay of chunks [M, K or 1], None for none.

    Attributes:
        reads: decayed from the beginning of the chunk.
        writes: decayed to its end.
        whole: the decay of a chunk.
        scores: of each reader with each writer, [M, C, C].
    """

    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    whole: Tensor | None
    scores: tuple[tuple[Tensor, ...], ...]


def cut(x: Tensor, chunk: int) -> Tensor:
    """[N, L, D] to [N * n, C, D], filled up with zeros (null tokens)."""
    more = -x.shape[1] % chunk
    if more:
        x = torch.nn.functional.pad(x, (0, 0, 0, more))
    return x.reshape(-1, chunk, x.shape[2])


def _fitting(chunk: int, length: int) -> int:
    """The largest power of two up to `chunk` that a row of that length needs."""
    return int(min(1 << (chunk.bit_length() - 1), 1 << max(length - 1, 0).bit_length()))


def _met(stand: tuple[Reader, ...], xs: list[Tensor], ys: list[Tensor], gates: Tensor | None) -> _Met:
    if gates is not None and gates.shape[-1] > 1:
        reads, writes, whole, scores = meet(stand, gates, torch.stack(xs, 2), torch.stack(ys, 2))
        pairs = scores.flatten(0, 1).unbind(0)
        rows = tuple(pairs[n : n + len(ys)] for n in range(0, len(pairs), len(ys)))
        return _Met(reads.unbind(2), writes.unbind(2), whole, rows)
    products = [[torch.bmm(x, y.mT) for y in ys] for x in xs]
    if gates is None:
        seen = [tuple(p.tril(0 if r.own else -1) for p in row) for r, row in zip(stand, products, strict=True)]
        return _Met(tuple(xs), tuple(ys), None, tuple(seen))
    chunk = gates.shape[1]
    index = torch.arange(chunk, device=gates.device)
    later = index[:, None] > index
    # what decays between a write and a read, and nothing else, is summed up: a difference of longer sums would lose digits
    gap = torch.where(later, gates, 0.0).cumsum(1)
    since, until = gap.masked_fill(later.mT, -torch.inf).exp(), gates.cumsum(1)
    blank = torch.zeros_like(gates[:, :1])
    earlier = torch.cat([torch.zeros_like(since[:, :1]), since[:, :-1]], 1)
    decays = [earlier if r.before else since if r.own else since.tril(-1) for r in stand]
    onto = [(torch.cat([blank, until[:, :-1]], 1) if r.before else until).exp() for r in stand]
    return _Met(
        tuple(x * d for x, d in zip(xs, onto, strict=True)),
        tuple(y * since[:, -1, :, None] for y in ys),
        until[:, -1].exp(),
        tuple(tuple(p * d for p in row) for row, d in zip(products, decays, strict=True)),
    )


def solved(rows: Rows, scale: float, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor | None]:
    """What is read [N, L, V], scaled, the final states [N, K, V], and what a low-rank term's a read from the states, or None.

    Args:
        rows: the recurrence.
        scale: factor on what is read.
        chunk: tokens of a chunk, a power of two; fewer where rows are shorter.
    """
    N, L = rows.q.shape[:2]
    chunk = _fitting(chunk, L)
    own = rows.beta is not None  # a delta operator: it reads with -k, and its b is what it writes with
    q, v = cut(rows.q, chunk), cut(rows.v, chunk)
    k = cut(rows.k if rows.beta is None else rows.beta * rows.k, chunk)
    stand, xs, ys = [Reader(before=rows.exclusive, own=not rows.exclusive)], [q], [k]
    if own or rows.a is not None:
        stand.append(Reader(before=rows.undecayed, own=False))
        xs.append(cut(-rows.k if rows.a is None else rows.a, chunk))
    if not own and rows.b is not None:
        ys.append(cut(rows.b, chunk))
    met = _met(tuple(stand), xs, ys, None if rows.log_decay is None else cut(rows.log_decay, chunk))
    whole = rows.state.new_ones(len(q), 1) if met.whole is None else met.whole
    kept = whole.reshape(N, -1, whole.shape[1], 1)

    def each(x: Tensor) -> Tensor:
        return x.reshape(N, -1, *x.shape[1:])

    u, writers = None, met.writes[0].mT
    if len(xs) == 1:
        states, state = entering(kept, each(torch.bmm(writers, v)), rows.state)
        states = states.flatten(0, 1)
        o = torch.baddbmm(torch.bmm(met.scores[0][0], v), met.reads[0], states)
    else:
        solves = inverse(met.scores[1][-1])
        found, reads = torch.bmm(solves, torch.bmm(met.scores[1][0], v)), torch.bmm(solves, met.reads[1])
        low = met.writes[-1].mT
        added = torch.bmm(writers, v + found) if own else torch.baddbmm(torch.bmm(writers, v), low, found)
        states, state = entering(kept, each(added), rows.state, each(low), each(reads))
        states = states.flatten(0, 1)
        u = torch.baddbmm(found, reads, states)
        o = torch.baddbmm(torch.bmm(met.scores[0][0], v + u if own else v), met.reads[0], states)
        if not own:
            o = torch.baddbmm(o, met.scores[0][1], u)
    o = each(o).flatten(1, 2)[:, :L]
    if rows.bonus is not None:
        o = o + (rows.q * rows.bonus[:, None] * rows.k).sum(-1, keepdim=True) * rows.v
    if u is not None:
        u = each(-u if own else u).flatten(1, 2)[:, :L]
    return scale * o, state, u
