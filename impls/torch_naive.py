"""The naive form: one matrix of decayed scores over all tokens, masked, times the values.

The decay between two tokens is exp of the difference of two running sums. Over a long sequence with strong gates those sums are
large and nearly equal, so they are float64, and the difference is rounded only once it is small.

A low-rank term turns the values into the solution of one triangular system over all tokens. What it takes away may be larger
than what it leaves by a factor that grows with T (keys that repeat), in the values as in their gradient, where a chunk bounds
it; so a form without chunks needs float64 for such operators.

Source: Katharopoulos et al. 2020 (arXiv 2006.16236), section 3; Yang et al. 2024 (arXiv 2406.06484), section 3.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from linverify.impls._functions import functions, laid_out
from linverify.impls._layout import Layout
from linverify.impls._terms import Sums, Terms, decayed, own_write, sums

# Numbers in one block of the [i, j, K] decays of a gate per channel; several blocks are recomputed in the backward pass.
_BLOCK = 2**20


def naive(t: Terms, layout: Layout, initial: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens of a sequence at once.

    Shapes: terms [sequences that are not empty, H, T, .]; initial [N, H, K, V].
    """
    dtype = t.v.dtype
    if t.a is not None:
        t, initial = _widened(t), initial.double()
    gates = sums(t)
    keys = [t.k] if t.b is None else [t.k, t.b]
    outputs = [t.q[:0] @ initial[:0]]

    def step(_: int, state: Tensor) -> Tensor:
        values = [t.v] if t.a is None else _corrected(t, t.a, keys, gates, state)
        o = decayed(t.q, gates.read) @ state
        new = decayed(state, gates.end.mT)
        scores = _scores(t.q, keys, gates.read, gates.after, strict=t.exclusive)
        for key, value, score in zip(keys, values, scores, strict=True):
            o = o + score @ value
            new = new + decayed(key, gates.end - gates.after).mT @ value
        outputs.append(o)
        return new

    final = layout.scan(initial, step)
    return (torch.cat(outputs) + own_write(t)).to(dtype), final.to(dtype)


def _widened(t: Terms) -> Terms:
    """The terms in float64."""
    a, b, beta, bonus = (None if x is None else x.double() for x in (t.a, t.b, t.beta, t.bonus))
    return replace(t, q=t.q.double(), k=t.k.double(), v=t.v.double(), a=a, b=b, beta=beta, bonus=bonus)


def _corrected(t: Terms, a: Tensor, keys: list[Tensor], gates: Sums, state: Tensor) -> list[Tensor]:
    """The values [.., T, V] that are written with k (and with b) once the low-rank term has read the state."""
    from_state = decayed(a, gates.low) @ state
    if t.beta is not None:
        (from_keys,) = _scores(a, [t.k], gates.low, gates.after, strict=True)
        return [_substitute(t.beta * from_keys, t.beta * (t.v - from_state))]
    from_keys, from_low_rank = _scores(a, keys, gates.low, gates.after, strict=True)
    return [t.v, _substitute(-from_low_rank, from_keys @ t.v + from_state)]


def _substitute(system: Tensor, right: Tensor) -> Tensor:
    """Solve (1 + system) x = right for a strictly lower triangular system."""
    solved: Tensor = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    return solved


def _scores(rows: Tensor, columns: list[Tensor], read: Tensor, after: Tensor, *, strict: bool) -> list[Tensor]:
    """sum_d r_id c_jd exp(read_id - after_jd), [.., T, T], for j < i (strict) or j <= i, 0 elsewhere; for each c."""
    T = rows.shape[-2]
    later = torch.ones(T, T, dtype=torch.bool, device=rows.device).triu(int(not strict))
    if after.shape[-1] == 1:
        # Masked before exp: the exponents above the diagonal are positive and would overflow.
        decay = (read - after.mT).to(rows.dtype).masked_fill(later, -torch.inf).exp()
        # tril as well, since a product that overflows to infinity times a masked 0 would be NaN.
        return [(rows @ c.mT * decay).tril(-int(strict)) for c in columns]
    height = max(1, _BLOCK // max(1, after.numel()))
    if height >= T:
        return _channel_scores(rows, read, later, after, *columns)
    blocks = []
    for start in range(0, T, height):
        stop = min(start + height, T)
        own = [rows[..., start:stop, :], read[..., start:stop, :], later[start:stop, :stop], after[..., :stop, :]]
        earlier = [c[..., :stop, :] for c in columns]
        block = checkpoint(_channel_scores, *own, *earlier, use_reentrant=False, preserve_rng_state=False)
        blocks.append([pad(b, (0, T - stop)) for b in block])
    return [torch.cat(parts, -2) for parts in zip(*blocks, strict=True)]


def _channel_scores(rows: Tensor, read: Tensor, later: Tensor, after: Tensor, *columns: Tensor) -> list[Tensor]:
    """The same for some rows and the columns they see, with the exponent of every pair and channel."""
    exponent = (read.unsqueeze(-2) - after.unsqueeze(-3)).to(rows.dtype)
    decay = exponent.masked_fill(later.unsqueeze(-1), -torch.inf).exp() * rows.unsqueeze(-2)  # [.., i, j, K]
    return [torch.einsum("...ijk,...jk->...ij", decay, c) for c in columns]


globals().update(functions(__name__, form="naive", run=laid_out(lambda longest: longest, naive)))
