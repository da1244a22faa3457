"""The chunkwise form: chunks of 64 tokens, quadratic inside, a state between them.

With G the running sum of log gates inside a chunk, the scores are sum_d r_id c_jd exp(G_id - G_jd) for j up to i. Every
exponent that is formed here is at most 0:

* a scalar gate takes the difference itself, masked before exp;
* a gate per channel would need it for every pair and channel, so a chunk is cut into sub-chunks of 16. Between two of them the
  exponent is split at the token before the later one, (G_i - G_ref) + (G_ref - G_j), which leaves a matrix product; inside one
  the difference is taken for every pair.

Low-rank terms are the triangular system of the UT transform, solved by substitution (a Neumann series loses all digits where
keys repeat).

Source: Yang et al. 2023 (arXiv 2312.06635), secondary chunking; Yang et al. 2024 (arXiv 2406.06484), UT transform.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from linverify.impls._functions import functions, laid_out
from linverify.impls._layout import Layout
from linverify.impls._terms import Sums, Terms, decayed, own_write, sums

CHUNK = 64
SUB_CHUNK = 16

# Decayed products [.., C, C] of row i and column j; what lies above the diagonal, and on it, is the caller's to cut off.
Scores = Callable[[Tensor, Tensor], Tensor]


def chunkwise(t: Terms, layout: Layout, initial: Tensor) -> tuple[Tensor, Tensor]:
    """Everything inside the chunks at once, then the states from chunk to chunk, then the reads at once.

    Shapes: terms [chunks, H, C, .] in the order of the steps; initial [N, H, K, V].
    """
    gates = sums(t)
    reading = _scores(gates.read, gates, t.q.dtype)
    writers = [t.k] if t.b is None else [t.k, t.b]
    scores = torch.cat([reading(t.q, w).tril(-int(t.exclusive)) for w in writers], -1)
    keys = torch.cat([decayed(w, gates.end - gates.after) for w in writers], -2).mT.split(layout.active)
    decay = gates.end.to(t.q.dtype).exp().mT.split(layout.active)
    v = t.v.split(layout.active)
    offset = slope = None
    if t.a is not None:
        low = reading if gates.low is gates.read else _scores(gates.low, gates, t.q.dtype)
        offset, slope = (x.split(layout.active) for x in _low_rank(t, t.a, writers, decayed(t.a, gates.low), low))
    states, values = [initial[:0]], [scores[:0].mT @ t.v[:0]]

    def step(i: int, state: Tensor) -> Tensor:
        value = v[i]
        if offset is not None and slope is not None:
            value = offset[i] + slope[i] @ state
            value = value if t.b is None else torch.cat([v[i], value], -2)
        states.append(state)
        values.append(value)
        after: Tensor = decay[i] * state + keys[i] @ value
        return after

    final = layout.scan(initial, step)
    o = decayed(t.q, gates.read) @ torch.cat(states) + scores @ torch.cat(values)
    return o + own_write(t), final


def _low_rank(t: Terms, a: Tensor, writers: list[Tensor], from_start: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Offset [.., C, V] and slope [.., C, K]: what the low-rank term writes is offset + slope @ (the entering state)."""
    from_keys = scores(a, t.k).tril(-1)
    if t.beta is not None:
        # u = beta (v - a^T Y) is written with k: (1 + beta A) u = beta (v - a S).
        system, right = t.beta * from_keys, t.beta * torch.cat([t.v, -from_start], -1)
    else:
        # w = a^T Y is written with b: (1 - B) w = A v + a S.
        system, right = -scores(a, writers[-1]).tril(-1), torch.cat([from_keys @ t.v, from_start], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    offset, slope = solved.split([t.v.shape[-1], a.shape[-1]], -1)
    return offset, slope


def _scores(read: Tensor, gates: Sums, dtype: torch.dtype) -> Scores:
    """The products of readers whose gates sum to `read` and of writers; decays are computed once for all of them."""
    own = read is gates.after
    if read.shape[-1] == 1:
        decay = _causal_exp((read - gates.after.mT).to(dtype), own=own)
        return lambda rows, columns: rows @ columns.mT * decay
    blocks = _blocks(read), _blocks(gates.after)
    reference = gates.before[..., ::SUB_CHUNK, :].unsqueeze(-2)  # [.., n, 1, K]: at the end of the earlier sub-chunks
    row_decay = (blocks[0] - reference).to(dtype).exp()  # [.., n, 16, K]
    token = torch.arange(read.shape[-2], device=read.device)
    later = (token >= token[::SUB_CHUNK, None]).unsqueeze(-1)  # [n, C, 1]
    column_decay = (
        (reference - gates.after.unsqueeze(-3)).to(dtype).masked_fill(later, -torch.inf).exp()
    )  # [.., n, C, K]
    exponent = (blocks[0].unsqueeze(-2) - blocks[1].unsqueeze(-3)).to(dtype)  # [.., n, 16, 16, K]
    pair_decay = _causal_exp(exponent.movedim(-1, 0), own=own).movedim(0, -1)

    def scores(rows: Tensor, columns: Tensor) -> Tensor:
        far = (_blocks(rows) * row_decay) @ (columns.unsqueeze(-3) * column_decay).mT  # [.., n, 16, C]
        near = ((pair_decay * _blocks(columns).unsqueeze(-3)) @ _blocks(rows).unsqueeze(-1)).squeeze(-1)
        # [.., n, 16, 16] to [.., n, 16, n, 16]: placed, not multiplied by zeros, which would spread a NaN.
        near = torch.diag_embed(near.movedim(-3, -1), dim1=-4, dim2=-2)
        return far.flatten(-3, -2) + near.flatten(-2).flatten(-3, -2)

    return scores


def _blocks(x: Tensor) -> Tensor:
    """[.., C, D] as [.., n, 16, D]."""
    blocks: Tensor = x.unflatten(-2, (-1, SUB_CHUNK))
    return blocks


def _causal_exp(exponent: Tensor, *, own: bool) -> Tensor:
    """Exponential of [.., i, j] for j < i, and j = i where `own`, 0 elsewhere; masked first: the others overflow."""
    later = torch.ones(exponent.shape[-2:], dtype=torch.bool, device=exponent.device).triu(int(own))
    return exponent.masked_fill(later, -torch.inf).exp()


def _width(longest: int) -> int:
    """A chunk, or less where every sequence is shorter: a multiple of the sub-chunk."""
    return min(CHUNK, -(-longest // SUB_CHUNK) * SUB_CHUNK)


globals().update(functions(__name__, form="chunkwise", run=laid_out(_width, chunkwise)))
