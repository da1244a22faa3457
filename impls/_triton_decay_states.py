# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of the decay family that do not care where the scores came from: gate sums, states, and the products with v and o.

Tokens are a flat list, every tensor contiguous: q, k [tokens, H, K], v, o [tokens, H, V]. Scores A [tokens, H, BT] are rows of
a chunk. The running sums of log gates G inside chunks are float32, [tokens, H] (CHANNELS 1) or [tokens, H, K] (CHANNELS 2);
without decay (CHANNELS 0) there are none. Rows beyond a chunk's end read zeros, and a sum of zero is above every other:
exponents that must not be positive are held at zero.

KIND says how a matrix product takes its operands: "bf16"; "tf32", numbers rounded to the ten bits that a tensor core would cut
them to; "fp32", which it cuts.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span, step, walk
from linverify.impls._triton_rows import load, load_turned, store


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


@triton.jit
def sums(g, G, spans, D, CONSTANT: constexpr, BT: constexpr, BD: constexpr):
    """Write G [tokens, D], the running sums of g [tokens, D] inside the chunk; a constant g is [D]."""
    c, d, t = tl.program_id(0), tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, BT)
    first, n = span(spans, c)
    if CONSTANT:
        total = (t + 1).to(tl.float32)[:, None] * tl.load(g + d, mask=d < D, other=0.0)[None, :]
    else:
        gates = load(g + first * D, t, d, n, D, D)
        # A gate of -120 leaves nothing in float32: lower ones would only cost the sum digits, and minus infinity all of them.
        total = tl.cumsum(tl.maximum(gates, -120.0, propagate_nan=tl.PropagateNan.ALL), 0)
    store(G + first * D, total, t, d, n, D, D)


@triton.jit(do_not_specialize=["H"])
def states(x, y, G, starts, slots, initial, kept, final, scale, H, K: constexpr, V: constexpr, BACK: constexpr,
           CHANNELS: constexpr, KIND: constexpr, BT: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Carry the state [K, V] of a sequence from chunk to chunk; kept [chunks, H, K, V] is what enters each.

    Forwards x is k and y is v: S <- exp(G_end) S + sum_t (exp(G_end - G_t) k_t) v_t^T. Backwards they are q and do, and the
    state's gradient is carried, kept where it enters a chunk from behind: dS <- exp(G_end) dS + sum_t (exp(G_t) q_t) do_t^T.
    """
    p, h, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    i = block // tl.cdiv(V, BV) * BK + tl.arange(0, BK)
    j = block % tl.cdiv(V, BV) * BV + tl.arange(0, BV)
    t = tl.arange(0, BT)
    start, stop, slot, end_slot = walk(starts, slots, p)
    S = load(initial + (p * H + h) * K * V, i, j, K, V, V)
    for at in range(end_slot - slot):
        c = slot + at
        if BACK:
            c = end_slot - 1 - at
        store(kept + (c * H + h) * K * V, S, i, j, K, V, V)
        first, n = step(start, stop, slot, c, BT)
        row, last = first * H + h, (n - 1) * H
        X = load_turned(x + row * K, t, i, n, H * K, K).to(tl.float32) * scale
        Y = load(y + row * V, t, j, n, H * V, V)
        if CHANNELS > 0:
            if CHANNELS == 2:
                total = load_turned(G + row * K, t, i, n, H * K, K)
                end = tl.load(G + row * K + last * K + i, mask=i < K, other=0.0)[:, None]
                X *= decay(total if BACK else end - total)
            else:
                # On the values: a rounding of a key would go through a whole row of the state.
                total = tl.load(G + row + t * H, mask=t < n, other=0.0)[:, None]
                end = tl.load(G + row + last)
                Y = Y.to(tl.float32) * decay(total if BACK else end - total)
            S *= decay(end)
        S += tl.dot(operand(X, KIND), operand(Y, KIND))
    store(final + (p * H + h) * K * V, S, i, j, K, V, V)


@triton.jit(do_not_specialize=["H"])
def outputs(q, v, G, A, kept, spans, o, scale, H, K: constexpr, V: constexpr, CHANNELS: constexpr, KIND: constexpr,
            BT: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Write o = (scale exp(G) q) S + A v of a chunk."""
    c, h, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BT)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    first, n = span(spans, c)
    row = first * H + h
    if CHANNELS > 0:
        G += row * (K if CHANNELS == 2 else 1)
    acc = tl.zeros([BT, BV], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        Q = load(q + row * K, t, i, n, H * K, K).to(tl.float32) * scale
        if CHANNELS == 2:
            Q *= decay(load(G, t, i, n, H * K, K))
        S = load(kept + (c * H + h) * K * V, i, j, K, V, V)
        acc = tl.dot(operand(Q, KIND), operand(S, KIND), acc)
    if CHANNELS == 1:
        acc *= decay(tl.load(G + t * H, mask=t < n, other=0.0))[:, None]
    scores = load(A + row * BT, t, t, n, H * BT, BT)
    acc = tl.dot(operand(scores, KIND), operand(load(v + row * V, t, j, n, H * V, V), KIND), acc)
    store(o + row * V, acc, t, j, n, H * V, V)


@triton.jit(do_not_specialize=["H"])
def value_gradients(k, G, A, dkept, do, spans, dv, H, K: constexpr, V: constexpr, CHANNELS: constexpr, KIND: constexpr,
                    BT: constexpr, BK: constexpr, BV: constexpr):  # fmt: skip
    """Write dv = A^T do + (exp(G_end - G) k) dS of a chunk, dS the gradient of the state that leaves it."""
    c, h, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BT)
    j = tl.program_id(2) * BV + tl.arange(0, BV)
    first, n = span(spans, c)
    row, last = first * H + h, (n - 1) * H
    if CHANNELS > 0:
        G += row * (K if CHANNELS == 2 else 1)
    acc = tl.zeros([BT, BV], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        X = load(k + row * K, t, i, n, H * K, K).to(tl.float32)
        if CHANNELS == 2:
            end = tl.load(G + last * K + i, mask=i < K, other=0.0)[None, :]
            X *= decay(end - load(G, t, i, n, H * K, K))
        dS = load(dkept + (c * H + h) * K * V, i, j, K, V, V)
        acc = tl.dot(operand(X, KIND), operand(dS, KIND), acc)
    if CHANNELS == 1:
        acc *= decay(tl.load(G + last) - tl.load(G + t * H, mask=t < n, other=0.0))[:, None]
    scores = load_turned(A + row * BT, t, t, n, H * BT, BT)
    acc = tl.dot(operand(scores, KIND), operand(load(do + row * V, t, j, n, H * V, V), KIND), acc)
    store(dv + row * V, acc, t, j, n, H * V, V)


@triton.jit(do_not_specialize=["H"])
def score_gradients(v, do, spans, dA, scale, H, V: constexpr, KIND: constexpr, BT: constexpr, BV: constexpr):
    """Write dA = scale do v^T of a chunk, for writes up to the read, as scores without their decay."""
    c, h, t = tl.program_id(0), tl.program_id(1), tl.arange(0, BT)
    first, n = span(spans, c)
    row = first * H + h
    acc = tl.zeros([BT, BT], tl.float32)
    for offset in range(0, V, BV):
        j = offset + tl.arange(0, BV)
        out = load(do + row * V, t, j, n, H * V, V)
        Y = load_turned(v + row * V, t, j, n, H * V, V)
        acc = tl.dot(operand(out, KIND), operand(Y, KIND), acc)
    store(dA + row * BT, tl.where(t[:, None] >= t[None, :], acc * scale, 0.0), t, t, n, H * BT, BT)
