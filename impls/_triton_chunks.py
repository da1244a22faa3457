# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of the chunkwise form that do not care where the scores came from: gate sums, states, and the products with v and o.

Tokens are a flat list, every tensor contiguous: q, k [tokens, H, K], v, o [tokens, H, V]. Chunk c has chunks[2 c + 1] tokens,
at most BT, from chunks[2 c] on; sequence n has the tokens from starts[n] and the chunks from slots[n] on. Scores A [tokens, H,
BT] are rows of a chunk. The running sums of log gates G inside chunks are float32, [tokens, H] (CHANNELS 1) or [tokens, H, K]
(CHANNELS 2); without decay (CHANNELS 0) there are none. Rows beyond a chunk's end read zeros, and a sum of zero is above every
other: exponents that must not be positive are held at zero.

`starts`, `slots` and `chunks` are parts of one table, so their alignment is chance and must not ask for another compilation.

KIND says how a matrix product takes its operands: "bf16"; "tf32", numbers rounded to the ten bits that a tensor core would cut
them to; "fp32", which it cuts.
"""

import triton
import triton.language as tl
from triton.language import constexpr


@triton.jit
def operand(x, KIND: constexpr):
    """A tile as a matrix product takes it."""
    if KIND == "bf16":
        taken = x.to(tl.bfloat16)
    elif KIND == "tf32":
        bits = x.to(tl.float32).to(tl.int32, bitcast=True)
        taken = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    else:
        taken = x.to(tl.float32)
    return taken


@triton.jit
def decay(exponent):
    """What is left after a sum of log gates, which is at most 0 up to rounding."""
    return tl.exp(tl.minimum(exponent, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(do_not_specialize=["chunks"])
def sums(g, G, chunks, D, CONSTANT: constexpr, BT: constexpr, BD: constexpr):
    """Write G [tokens, D], the running sums of g [tokens, D] inside the chunk; a constant g is [D]."""
    c, d, t = tl.program_id(0), tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BT)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    at = t[:, None] * D + d[None, :]
    inside = (t[:, None] < count) & (d[None, :] < D)
    if CONSTANT:
        total = (t + 1).to(tl.float32)[:, None] * tl.load(g + d, mask=d < D, other=0.0)[None, :]
    else:
        gates = tl.load(g + first * D + at, mask=inside, other=0.0)
        # A gate of -120 leaves nothing in float32: lower ones would only cost the sum digits, and minus infinity all of them.
        total = tl.cumsum(tl.maximum(gates, -120.0, propagate_nan=tl.PropagateNan.ALL), 0)
    tl.store(G + first * D + at, total, mask=inside)


@triton.jit(do_not_specialize=["H", "starts", "slots"])
def states(x, y, G, starts, slots, initial, kept, final, scale, H, K: constexpr, V: constexpr, BACK: constexpr,
           CHANNELS: constexpr, KIND: constexpr, BT: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Carry the state [K, V] of a sequence from chunk to chunk; kept [chunks, H, K, V] is what enters each.

    Forwards x is k and y is v: S <- exp(G_end) S + sum_t (exp(G_end - G_t) k_t) v_t^T. Backwards they are q and do, and the
    state's gradient is carried, kept where it enters a chunk from behind: dS <- exp(G_end) dS + sum_t (exp(G_t) q_t) do_t^T.
    """
    n, h, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    i = block // tl.cdiv(V, BV) * BK + tl.arange(0, BK)
    j = block % tl.cdiv(V, BV) * BV + tl.arange(0, BV)
    at, inside = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
    t = tl.arange(0, BT)
    start, stop, slot = tl.load(starts + n), tl.load(starts + n + 1), tl.load(slots + n)
    chunks = (stop - start + BT - 1) // BT
    S = tl.load(initial + (n * H + h) * K * V + at, mask=inside, other=0.0)
    for step in range(chunks):
        c = step
        if BACK:
            c = chunks - 1 - step
        tl.store(kept + ((slot + c) * H + h) * K * V + at, S.to(kept.dtype.element_ty), mask=inside)
        first = start + c * BT
        origin, row, real = first * H + h, t * H, first + t < stop
        at_x, in_x = row[None, :] * K + i[:, None], real[None, :] & (i[:, None] < K)
        X = tl.load(x + origin * K + at_x, mask=in_x, other=0.0).to(tl.float32) * scale
        Y = tl.load(y + origin * V + row[:, None] * V + j[None, :], mask=real[:, None] & (j[None, :] < V), other=0.0)
        if CHANNELS > 0:
            last = (tl.minimum(first + BT, stop) - 1) * H + h
            if CHANNELS == 2:
                total = tl.load(G + origin * K + at_x, mask=in_x, other=0.0)
                end = tl.load(G + last * K + i, mask=i < K, other=0.0)[:, None]
                X *= decay(total if BACK else end - total)
            else:
                # On the values: a rounding of a key would go through a whole row of the state.
                total = tl.load(G + origin + row, mask=real, other=0.0)[:, None]
                end = tl.load(G + last)
                Y = Y.to(tl.float32) * decay(total if BACK else end - total)
            S *= decay(end)
        S += tl.dot(operand(X, KIND), operand(Y, KIND))
    tl.store(final + (n * H + h) * K * V + at, S, mask=inside)


@triton.jit(do_not_specialize=["H", "chunks"])
def outputs(q, v, G, A, kept, chunks, o, scale, H, K: constexpr, V: constexpr, CHANNELS: constexpr, KIND: constexpr,
            BT: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Write o = (scale exp(G) q) S + A v of a chunk."""
    c, h, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BT)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    q, v, o, A = q + origin * K, v + origin * V, o + origin * V, A + origin * BT
    if CHANNELS > 0:
        G += origin * (K if CHANNELS == 2 else 1)
    kept += (c * H + h) * K * V
    row, real = t * H, t < count
    acc = tl.zeros([BT, BV], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        at_k, in_k = row[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
        at_s, in_s = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
        Q = tl.load(q + at_k, mask=in_k, other=0.0).to(tl.float32) * scale
        if CHANNELS == 2:
            Q *= decay(tl.load(G + at_k, mask=in_k, other=0.0))
        acc = tl.dot(operand(Q, KIND), operand(tl.load(kept + at_s, mask=in_s, other=0.0), KIND), acc)
    if CHANNELS == 1:
        acc *= decay(tl.load(G + row, mask=real, other=0.0))[:, None]
    at_v, in_v = row[:, None] * V + j[None, :], real[:, None] & (j[None, :] < V)
    scores = tl.load(A + row[:, None] * BT + t[None, :], mask=real[:, None], other=0.0)
    acc = tl.dot(operand(scores, KIND), operand(tl.load(v + at_v, mask=in_v, other=0.0), KIND), acc)
    tl.store(o + at_v, acc.to(o.dtype.element_ty), mask=in_v)


@triton.jit(do_not_specialize=["H", "chunks"])
def value_gradients(k, G, A, dkept, do, chunks, dv, H, K: constexpr, V: constexpr, CHANNELS: constexpr, KIND: constexpr,
                    BT: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Write dv = A^T do + (exp(G_end - G) k) dS of a chunk, dS the gradient of the state that leaves it."""
    c, h, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BT)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    k, do, dv, A = k + origin * K, do + origin * V, dv + origin * V, A + origin * BT
    if CHANNELS > 0:
        G += origin * (K if CHANNELS == 2 else 1)
    dkept += (c * H + h) * K * V
    row, real, last = t * H, t < count, (count - 1) * H
    acc = tl.zeros([BT, BV], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        at_k, in_k = row[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
        at_s, in_s = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
        X = tl.load(k + at_k, mask=in_k, other=0.0).to(tl.float32)
        if CHANNELS == 2:
            end = tl.load(G + last * K + i, mask=i < K, other=0.0)[None, :]
            X *= decay(end - tl.load(G + at_k, mask=in_k, other=0.0))
        acc = tl.dot(operand(X, KIND), operand(tl.load(dkept + at_s, mask=in_s, other=0.0), KIND), acc)
    if CHANNELS == 1:
        acc *= decay(tl.load(G + last) - tl.load(G + row, mask=real, other=0.0))[:, None]
    at_v, in_v = row[:, None] * V + j[None, :], real[:, None] & (j[None, :] < V)
    scores = tl.load(A + row[None, :] * BT + t[:, None], mask=real[None, :], other=0.0)
    acc = tl.dot(operand(scores, KIND), operand(tl.load(do + at_v, mask=in_v, other=0.0), KIND), acc)
    tl.store(dv + at_v, acc.to(dv.dtype.element_ty), mask=in_v)


@triton.jit(do_not_specialize=["H", "chunks"])
def score_gradients(v, do, chunks, dA, scale, H, V: constexpr, KIND: constexpr, BT: constexpr, BV: constexpr):
    """Write dA = scale do v^T of a chunk, for writes up to the read, as scores without their decay."""
    c, h, t = tl.program_id(0), tl.program_id(1), tl.arange(0, BT)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    v, do, dA = v + origin * V, do + origin * V, dA + origin * BT
    row, real = t * H, t < count
    acc = tl.zeros([BT, BT], tl.float32)
    for offset in range(0, V, BV):
        j = offset + tl.arange(0, BV)
        out = tl.load(do + row[:, None] * V + j[None, :], mask=real[:, None] & (j[None, :] < V), other=0.0)
        Y = tl.load(v + row[None, :] * V + j[:, None], mask=real[None, :] & (j[:, None] < V), other=0.0)
        acc = tl.dot(operand(out, KIND), operand(Y, KIND), acc)
    acc = tl.where(t[:, None] >= t[None, :], acc * scale, 0.0)
    tl.store(dA + row[:, None] * BT + t[None, :], acc, mask=real[:, None])
