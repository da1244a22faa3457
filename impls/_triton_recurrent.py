# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The kernels of the recurrent form: one program carries a tile of the state, all K channels by some of V, through a sequence.

Tokens are a flat list, every tensor contiguous: q, k, a, b [tokens, H, K], v [tokens, H, V], beta [tokens, H], g [tokens, H] or
[tokens, H, K]. Sequence n has the tokens from starts[n] to starts[n + 1] and the checkpoints from slots[n] to slots[n + 1], one
every `EVERY` tokens.

The flags: CHANNELS, what a gate has (0: no decay, 1: one number, 2: one a channel); LOW, there is a low-rank term; DELTA, it
writes beta (v - a^T Y) with k; UNDECAYED, it reads the state before its decay; EXCLUSIVE, q reads the state before the step;
BONUS, it sees the token's own write times u.
"""

import triton
import triton.language as tl
from triton.language import constexpr


@triton.jit
def _decay(g, row, i, K, CHANNELS: constexpr):
    """What a token's gate leaves of the state: a number, or [BK, 1]."""
    if CHANNELS == 2:
        gate = tl.load(g + row * K + i, mask=i < K, other=0.0)[:, None]
    else:
        gate = tl.load(g + row)
    return tl.exp(gate)


@triton.jit
def _step(X, k, v, g, a, b, beta, row, i, j, K, V, CHANNELS: constexpr, LOW: constexpr, DELTA: constexpr,
          UNDECAYED: constexpr):  # fmt: skip
    """The state after its decay, what a^T reads of it [BV], what is written with k [BV], the state after the token."""
    key = tl.load(k + row * K + i, mask=i < K, other=0.0)
    value = tl.load(v + row * V + j, mask=j < V, other=0.0)
    decayed, read = X, value
    if CHANNELS > 0:
        decayed = X * _decay(g, row, i, K, CHANNELS)
    if LOW:
        reader = tl.load(a + row * K + i, mask=i < K, other=0.0)
        read = tl.sum(reader[:, None] * (X if UNDECAYED else decayed), 0)
    if DELTA:
        value = tl.load(beta + row) * (value - read)
    after = decayed + key[:, None] * value[None, :]
    if LOW and not DELTA:
        after += tl.load(b + row * K + i, mask=i < K, other=0.0)[:, None] * read[None, :]
    return decayed, read, value, after


@triton.jit(do_not_specialize=["H", "starts", "slots"])
def forward(q, k, v, g, a, b, beta, u, starts, slots, initial, o, final, checkpoints, H, K, V, EVERY: constexpr,
            CHANNELS: constexpr, LOW: constexpr, DELTA: constexpr, UNDECAYED: constexpr, EXCLUSIVE: constexpr,
            BONUS: constexpr, SAVE: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Write o [tokens, H, V], the final states [N, H, K, V] and, where gradients will be asked for, the checkpoints."""
    n, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i, j = tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    at, inside = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
    start, stop, slot = tl.load(starts + n), tl.load(starts + n + 1), tl.load(slots + n)
    X = tl.load(initial + (n * H + h) * K * V + at, mask=inside, other=0.0)
    for t in range(start, stop):
        if SAVE:  # noqa: SIM102  # known when the kernel is compiled
            if (t - start) % EVERY == 0:
                tl.store(checkpoints + ((slot + (t - start) // EVERY) * H + h) * K * V + at, X, mask=inside)
        row = t * H + h
        query = tl.load(q + row * K + i, mask=i < K, other=0.0)
        _, _, _, after = _step(X, k, v, g, a, b, beta, row, i, j, K, V, CHANNELS, LOW, DELTA, UNDECAYED)
        out = tl.sum(query[:, None] * (X if EXCLUSIVE else after), 0)
        if BONUS:
            weight = query * tl.load(k + row * K + i, mask=i < K, other=0.0)
            weight *= tl.load(u + h * K + i, mask=i < K, other=0.0)
            out += tl.sum(weight, 0) * tl.load(v + row * V + j, mask=j < V, other=0.0)
        tl.store(o + row * V + j, out, mask=j < V)
        X = after
    tl.store(final + (n * H + h) * K * V + at, X, mask=inside)


@triton.jit(do_not_specialize=["H", "tokens", "held", "starts", "slots"])
def backward(q, k, v, g, a, b, beta, u, starts, slots, checkpoints, scratch, do, dfinal,  # noqa: C901  # flags
             dq, dk, dv, dg, da, db, dbeta, du, dinitial, H, K, V, tokens, held,
             EVERY: constexpr, CHANNELS: constexpr, LOW: constexpr, DELTA: constexpr, UNDECAYED: constexpr,
             EXCLUSIVE: constexpr, BONUS: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Write the gradients; dX is that of the state after the token at hand.

    What sums over V is written in parts, one a program along V: dq, dk, da, db [parts, tokens, H, K], dg and dbeta alike, du
    [parts, N, H, K]. Between two checkpoints the states are computed once more, forwards, into scratch [programs, held, BK,
    BV], and then read backwards: a state is never divided by its decay, which may be zero.
    """
    n, h, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, j = tl.arange(0, BK), part * BV + tl.arange(0, BV)
    at, inside = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
    start, stop, slot = tl.load(starts + n), tl.load(starts + n + 1), tl.load(slots + n)
    scratch += ((n * H + h) * tl.num_programs(2) + part) * held * BK * BV
    scratch += i[:, None] * BV + tl.arange(0, BV)[None, :]
    dX = tl.load(dfinal + (n * H + h) * K * V + at, mask=inside, other=0.0)
    if BONUS:
        bonus = tl.load(u + h * K + i, mask=i < K, other=0.0)
        dbonus = tl.zeros_like(bonus)
    blocks = (stop - start + EVERY - 1) // EVERY
    for back in range(blocks):
        block = blocks - 1 - back
        first = start + block * EVERY
        count = tl.minimum(stop - first, EVERY)
        X = tl.load(checkpoints + ((slot + block) * H + h) * K * V + at, mask=inside, other=0.0)
        for ahead in range(count):
            tl.store(scratch + ahead * BK * BV, X)
            row = (first + ahead) * H + h
            _, _, _, X = _step(X, k, v, g, a, b, beta, row, i, j, K, V, CHANNELS, LOW, DELTA, UNDECAYED)
        # Threads of a program share the tile, and may share it otherwise when they read it back.
        tl.debug_barrier()
        for behind in range(count):
            step = count - 1 - behind
            row = (first + step) * H + h
            before = tl.load(scratch + step * BK * BV)
            decayed, read, written, after = _step(before, k, v, g, a, b, beta, row, i, j, K, V, CHANNELS, LOW, DELTA,
                                                  UNDECAYED)  # fmt: skip
            query = tl.load(q + row * K + i, mask=i < K, other=0.0)
            key = tl.load(k + row * K + i, mask=i < K, other=0.0)
            value = tl.load(v + row * V + j, mask=j < V, other=0.0)
            dout = tl.load(do + row * V + j, mask=j < V, other=0.0)
            dread_q = query[:, None] * dout[None, :]
            if not EXCLUSIVE:
                dX += dread_q
            dquery = tl.sum((before if EXCLUSIVE else after) * dout[None, :], 1)
            dkey = tl.sum(dX * written[None, :], 1)
            dvalue = tl.sum(dX * key[:, None], 0)
            ddecayed, dbefore = dX, tl.zeros_like(dX)
            at_k = (part * tokens * H + row) * K + i
            if LOW:
                reader = tl.load(a + row * K + i, mask=i < K, other=0.0)
                if DELTA:
                    strength = tl.load(beta + row)
                    tl.store(dbeta + part * tokens * H + row, tl.sum(dvalue * (value - read), 0))
                    dvalue *= strength
                    dread = -dvalue
                else:
                    dread = tl.sum(dX * tl.load(b + row * K + i, mask=i < K, other=0.0)[:, None], 0)
                    tl.store(db + at_k, tl.sum(dX * read[None, :], 1), mask=i < K)
                dreader = tl.sum((before if UNDECAYED else decayed) * dread[None, :], 1)
                if DELTA:
                    dkey += dreader
                else:
                    tl.store(da + at_k, dreader, mask=i < K)
                if UNDECAYED:
                    dbefore = reader[:, None] * dread[None, :]
                else:
                    ddecayed += reader[:, None] * dread[None, :]
            if BONUS:
                own = tl.sum(value * dout, 0)
                dvalue += tl.sum(query * bonus * key, 0) * dout
                dquery += bonus * key * own
                dkey += query * bonus * own
                dbonus += query * key * own
            dX = ddecayed
            if CHANNELS > 0:
                dX = ddecayed * _decay(g, row, i, K, CHANNELS)
                dgate = tl.sum(ddecayed * decayed, 1)
                if CHANNELS == 2:
                    tl.store(dg + at_k, dgate, mask=i < K)
                else:
                    tl.store(dg + part * tokens * H + row, tl.sum(dgate, 0))
            dX += dbefore
            if EXCLUSIVE:
                dX += dread_q
            tl.store(dq + at_k, dquery, mask=i < K)
            tl.store(dk + at_k, dkey, mask=i < K)
            tl.store(dv + row * V + j, dvalue, mask=j < V)
        tl.debug_barrier()
    if BONUS:
        tl.store(du + ((part * tl.num_programs(0) + n) * H + h) * K + i, dbonus, mask=i < K)
    tl.store(dinitial + (n * H + h) * K * V + at, dX, mask=inside)
