"""The rounding model: the recurrence computed as a kernel of a given recipe would, forward and backward.

It serves the budget, not the reference: with rounding switched off it must equal the reference (a test), with rounding on its
errors tell how large a correct kernel's errors are. Everything follows from the folded canonical recurrence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.backward import decayed_read, decayed_write, inverse, merged, recomputed
from linverify.chunks import Chunks, split
from linverify.noise import Noise, product, rounded, shared
from linverify.roles import Roles


@dataclass(frozen=True, slots=True, eq=False)
class _LowRank:
    """W and U of the chunks' triangular systems, and b as their writes (None for a delta operator, which writes with k)."""

    w: Tensor
    u: Tensor
    writes: Tensor | None


def _low_rank(c: Chunks, x: Roles) -> _LowRank | None:
    """Solve the triangular systems of the low-rank term; None where there is no such term."""
    if x.beta is None and x.a is None:
        return None
    noise, chunk = c.noise, c.k.shape[2]
    eye = torch.eye(chunk, dtype=c.k.dtype, device=c.k.device)
    at = c.low_at if c.until is not None else None
    read_k = c.reader(c.k)
    if x.beta is not None and x.reading is not None:
        beta, reading = split(x.beta, chunk), c.operand(x.reading, "key")
        inner = read_k if x.written is None else c.reader(c.operand(x.written, "key"))
        matrix = eye + rounded(c.scores(c.reader(reading), inner, at, c.strict) * beta, noise, "dot")
        if noise.structure.key_partials is not None:
            reading = rounded(reading, noise, "", "key_partials")
        strong = reading * beta
        if noise.structure.strong_key is not None:
            strong = rounded(strong, noise, "strong_key")
        into = strong if at is None else strong * c.decays(at)
        right, writes = rounded(c.v * beta, noise, "value"), None
        into = rounded(into, noise, "key")
    else:
        assert x.a is not None
        assert x.b is not None
        a, writes = c.operand(x.a, "query"), c.operand(x.b, "key")
        read_a = c.reader(a)
        matrix = eye - c.scores(read_a, c.reader(writes), at, c.strict)
        seen = rounded(c.scores(read_a, read_k, at, c.strict), noise, "scores")
        right = rounded(product(seen, c.used(c.v), noise, "u"), noise, "u")
        into = rounded(a if at is None else a * c.use(at).exp(), noise, "query")
    if c.declared:
        solved = inverse(matrix, noise)
    elif noise.structure.merge is not None:
        solved = rounded(merged(matrix, noise), noise, "inverse", "inverse")
    else:
        solved = torch.linalg.solve_triangular(matrix, eye.expand_as(matrix), upper=False, unitriangular=True)
        solved = rounded(solved, noise, "inverse", "inverse")
    w = rounded(product(solved, into, noise, "w"), noise, "w", "w")
    u = product(solved, right, noise, "u")
    return _LowRank(w, rounded(u, noise, "u", "u") if writes is None else rounded(u, noise, "dot"), writes)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What the chunks of one run hand to each other.

    Attributes:
        ends: state at the end of each chunk [N, K, V]; the last one is the final state.
        entering: state that enters each chunk.
        keeps: what is left of it at the chunk's end, a factor.
        outgoing: writers [N, n, C, K] as the writes to the state use them.
    """

    ends: tuple[Tensor, ...]
    entering: tuple[Tensor, ...] = ()
    keeps: tuple[Tensor | float, ...] = ()
    outgoing: tuple[Tensor, ...] = ()


def chunked(x: Roles, scale: float, noise: Noise, *, exclusive: bool, undecayed: bool) -> tuple[Tensor, Trace]:
    """O [N, L, V] as a chunkwise kernel of the stack's recipes computes it, and its states."""
    c = Chunks(x, scale, noise, exclusive=exclusive, undecayed=undecayed)
    scores = [_scores(c, c.k)]
    low = _low_rank(c, x)
    own_write = low is None or low.writes is not None  # a delta operator writes what it solved for, and nothing else
    writers = [c.k.view_as(c.k)]
    if low is not None and low.writes is not None:
        writers.append(low.writes.view_as(low.writes))
        scores.append(_scores(c, low.writes))
    outs = [c.outgoing(w) for w in writers]
    added = _added(c, outs[0], c.v, slice(None)) if own_write else None
    # taken apart at once: the gradient of one chunk cut out of many is as large as all of them
    keeps, adds = (None if t is None else t.unbind(1) for t in (None if c.until is None else c.kept, added))
    ws, us = (None, None) if low is None else (low.w.unbind(1), low.u.unbind(1))
    writes = None if low is None else outs[-1].unbind(1)
    state, entering, ends, solved = x.state, [], [], []
    for i in range(c.q.shape[1]):
        # rounded as an operand of every product at once, unless this loop needs it
        operand = state if low is None else rounded(state, noise, "state", c.back or "state")
        entering.append(operand)
        kept = state if keeps is None else state * keeps[i]
        if low is not None and ws is not None and us is not None and writes is not None:
            seen = product(ws[i], operand, noise, "value")
            new = us[i] - seen if low.writes is None else us[i] + seen
            solved.append(rounded(new, noise, "value", "value"))
            kept = kept + _added(c, writes[i], solved[-1], i)
        state = rounded(kept if adds is None else kept + adds[i], noise, "carry", "carry")
        ends.append(state)
    states = torch.stack(entering, 1)
    o = _read(c, states if low is not None else rounded(states, noise, "state", c.back or "state"))
    if own_write:
        o = o + _inside(c, scores[0], c.used(c.v))
    if low is not None:
        values = torch.stack(solved, 1)
        if noise.structure.partials is not None:
            values = rounded(values, noise, "", "partials")
        o = o + _inside(c, scores[-1], values)
    o = o.reshape(o.shape[0], -1, o.shape[-1])[:, : x.q.shape[1]]
    left = (1.0,) * len(ends) if keeps is None else keeps
    return o + _bonus(x, scale, noise), Trace(tuple(ends), (x.state, *ends[:-1]), left, tuple(writers))


def _added(c: Chunks, writer: Tensor, value: Tensor, i: int | slice) -> Tensor:
    """What values [.., C, V] add to the state through their writers [.., C, K], both of chunk i (or of all)."""
    if not c.scalar:
        value = c.used(value) if isinstance(i, slice) else value
    elif c.noise.structure.decay == "result":
        return decayed_write(writer, value, c.remaining()[:, i], c.noise)
    elif c.noise.structure.folded_key is not None:
        writer = rounded(writer * c.remaining()[:, i], c.noise, "folded_key", c.back or "folded_key")
        value = c.used(value) if isinstance(i, slice) else value
    else:
        value = rounded(value * c.remaining()[:, i], c.noise, "value", c.back or "value")
    return product(writer.transpose(-1, -2), value, c.noise, "state_cotangent")


def _scores(c: Chunks, writer: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of the queries with writers of their own chunk, exact and as an operand."""
    exact = c.scores(c.q, c.reader(writer), None if c.until is None else c.read_at, c.read_mask)
    return exact, rounded(exact, c.noise, "scores")


def _inside(c: Chunks, scores: tuple[Tensor, Tensor], value: Tensor) -> Tensor:
    """What the queries read from values written in their own chunk."""
    exact, operand = scores
    if c.noise.structure.backward_scores is not None:
        return recomputed(operand, rounded(exact, c.noise, "backward_scores"), value, c.noise)
    return product(operand, value, c.noise, "operands" if c.declared else "")


def _read(c: Chunks, states: Tensor) -> Tensor:
    """What the queries read from the states that enter their chunks."""
    noise, folded = c.noise, c.noise.structure.folded_query
    if c.channel:
        q = rounded(c.query * c.use(c.read_at).exp(), noise, "query", c.back or "query")
        return product(q, states, noise, "query")
    if c.scalar and noise.structure.decay == "result":
        return decayed_read(c.q, c.query, states, c.decays(c.read_at), noise)
    if c.scalar and folded is not None:
        q = rounded(c.q, noise, "folded_query") * c.use(c.read_at).exp()
        return product(rounded(q, noise, "folded_query", c.back or "folded_query"), states, noise, "query")
    found = product(c.q, states, noise, "query")
    return found * c.decays(c.read_at) if c.scalar else found


def _bonus(x: Roles, scale: float, noise: Noise) -> Tensor:
    """The bonus as a weight on the scores' diagonal: a sum over channels, its gradient one over values, as other products."""
    if x.bonus is None or x.bonus_q is None or x.bonus_k is None:
        return x.q.new_zeros(())
    bonus = shared(x.bonus, noise, x.bonus_q.shape[1])
    read, written = (x.bonus_q * scale * bonus)[:, :, None], x.bonus_k[..., None]
    weight = rounded(product(read, written, noise), noise, "scores", "scores")
    if noise.structure.input is None:
        return rounded(product(weight, x.v[:, :, None], noise)[:, :, 0], noise, "dot", "dot")
    # it meets values, and their cotangents, as tensor cores see them
    value = rounded(x.v, noise, "input")[:, :, None]
    found = rounded(product(weight, value, noise)[:, :, 0], noise, "dot", "dot")
    return rounded(found, noise, "", "input")


def _bonus_in_state(x: Roles, scale: float, noise: Noise) -> Tensor:
    """The bonus as token-by-token kernels read it, q (S + u k v^T): a sum over the keys' channels for each value.

    Its rounding errors differ from value to value, where those of a weight that multiplies v do not
    (github.com/BlinkDL/RWKV-CUDA, wkv6: y += r (u k v + s)).
    """
    if x.bonus is None or x.bonus_q is None or x.bonus_k is None:
        return x.q.new_zeros(())
    bonus = shared(x.bonus, noise, x.bonus_q.shape[1])
    write = rounded((bonus * x.bonus_k)[..., None] * x.v[:, :, None], noise, "dot", "dot")
    return rounded(product(x.bonus_q[:, :, None], write, noise)[:, :, 0] * scale, noise, "dot", "dot")


def recurrent(x: Roles, scale: float, noise: Noise, *, exclusive: bool, undecayed: bool) -> tuple[Tensor, Trace]:
    """O [N, L, V] and the final state [N, K, V] as a float32 token-by-token kernel computes them."""

    def rd(y: Tensor) -> Tensor:
        return rounded(y, noise, "dot", "dot")

    decay = None
    if x.log_decay is not None:
        decay = noise.decay(x.log_decay).exp()
    state, seen = x.state, []
    for t in range(x.q.shape[1]):
        old = state
        kept = old if decay is None else rd(old * decay[:, t, :, None])
        value = x.v[:, t, None]
        if x.beta is not None and x.reading is not None:
            value = rd(x.beta[:, t, :, None] * rd(value - product(x.reading[:, t, None], kept, noise)))
        state = kept + x.k[:, t, :, None] * value
        if x.a is not None and x.b is not None:
            read = product(x.a[:, t, None], old if undecayed else kept, noise)
            state = state + x.b[:, t, :, None] * rd(read)
        state = rounded(state, noise, "carry", "carry")
        seen.append(old if exclusive else state)
    o = rd(product(x.q[:, :, None], torch.stack(seen, 1), noise)[:, :, 0] * scale)
    return o + _bonus_in_state(x, scale, noise), Trace((state,))
