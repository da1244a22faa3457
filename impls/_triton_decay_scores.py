# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of the decay family for what a gate shapes inside a chunk: decayed scores, and the gradients of q, k and gates.

Names and layouts as in `_triton_decay_states`. With one gate for all channels (or none) a score is a product times
exp(G_i - G_j), masked before exp. With a gate per channel the decay sits inside the product. Then a chunk is cut into
sub-chunks of BC tokens: between two of them the exponent is split at a token that lies between, (G_i - G_ref) + (G_ref - G_j),
both at most 0, which leaves a matrix product; inside one it is taken for every pair, a column at a time.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span
from linverify.impls._triton_decay_states import decay, operand
from linverify.impls._triton_rows import load, load_turned, store


@triton.jit
def below(i, size, there):
    """The mask i < size, or none of it; by a number, since Triton's interpreter does not spread a scalar condition."""
    return i < size * there.to(tl.int32)


@triton.jit
def pair_decay(G, t, n, H, CHANNELS: constexpr):
    """What a read i finds of a write j of its chunk, [BT, BT]; 0 for later writes."""
    causal = t[:, None] >= t[None, :]
    if CHANNELS == 1:
        total = tl.load(G + t * H, mask=t < n, other=0.0)
        found = decay(tl.where(causal, total[:, None] - total[None, :], float("-inf")))
    else:
        found = tl.where(causal, 1.0, 0.0)
    return found


@triton.jit(do_not_specialize=["H"])
def scores(q, k, G, A, spans, scale, H, K: constexpr, CHANNELS: constexpr, KIND: constexpr, BT: constexpr,
           BK: constexpr):  # fmt: skip
    """Write A = scale q k^T exp(G_i - G_j) of a chunk; one gate for all channels."""
    c, h, t = tl.program_id(0), tl.program_id(1), tl.arange(0, BT)
    first, n = span(spans, c)
    row = first * H + h
    if CHANNELS > 0:
        G += row * (K if CHANNELS == 2 else 1)
    acc = tl.zeros([BT, BT], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        Q, X = load(q + row * K, t, i, n, H * K, K), load_turned(k + row * K, t, i, n, H * K, K)
        acc = tl.dot(operand(Q, KIND), operand(X, KIND), acc)
    # The mask once more: a product that overflows to infinity, times a decay of 0, would be NaN.
    acc = tl.where(t[:, None] >= t[None, :], acc * scale * pair_decay(G, t, n, H, CHANNELS), 0.0)
    store(A + row * BT, acc, t, t, n, H * BT, BT)


@triton.jit(do_not_specialize=["H"])
def channel_scores(q, k, G, A, spans, scale, H, K: constexpr, KIND: constexpr, BT: constexpr, BC: constexpr,
                   BK: constexpr):  # fmt: skip
    """Write the rows of A that belong to a sub-chunk: sum_d scale q_id k_jd exp(G_id - G_jd)."""
    c, h, sub, t, u = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BC, tl.arange(0, BT), tl.arange(0, BC)
    first, n = span(spans, c)
    row, own = first * H + h, sub + u
    q, k, G, A = q + row * K, k + row * K, G + row * K, A + row * BT
    before = tl.minimum(sub, n)
    far, near = tl.zeros([BC, BT], tl.float32), tl.zeros([BC, BC], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        Q = load(q, own, i, n, H * K, K).to(tl.float32) * scale
        total = load(G, own, i, n, H * K, K)
        # Split at the end of the earlier sub-chunks; the first one has none.
        middle = tl.load(G + (sub - 1) * H * K + i, mask=below(i, K, (sub > 0) & (sub <= n)), other=0.0)
        X = load_turned(k, t, i, before, H * K, K).to(tl.float32)
        X *= decay(middle[:, None] - load_turned(G, t, i, before, H * K, K))
        far = tl.dot(operand(Q * decay(total - middle[None, :]), KIND), operand(X, KIND), far)
        for b in range(tl.minimum(BC, n - sub)):
            at_b = (sub + b) * H * K + i
            key = tl.load(k + at_b, mask=i < K, other=0.0).to(tl.float32)
            gone = total - tl.load(G + at_b, mask=i < K, other=0.0)[None, :]
            found = tl.sum(Q * key[None, :] * decay(tl.where(u[:, None] >= b, gone, float("-inf"))), 1)
            near = tl.where((u[None, :] == b) & (u[:, None] >= b), near + found[:, None], near)
    elsewhere = (own[:, None] < n) & ((t[None, :] < sub) | (t[None, :] >= sub + BC))
    tl.store(A + own[:, None] * H * BT + t[None, :], far.to(A.dtype.element_ty), mask=elsewhere)
    store(A, near, own, own, n, H * BT, BT)


@triton.jit(do_not_specialize=["H"])
def channel_gradients(q, k, G, dA, spans, dq, dk, H, K: constexpr, KIND: constexpr, BT: constexpr, BC: constexpr,
                      BK: constexpr):  # fmt: skip
    """Write what dA alone gives of dq and dk, float32, for one sub-chunk and some channels."""
    c, h, t, u = tl.program_id(0), tl.program_id(1), tl.arange(0, BT), tl.arange(0, BC)
    sub, i = tl.program_id(2) % (BT // BC) * BC, tl.program_id(2) // (BT // BC) * BK + tl.arange(0, BK)
    first, n = span(spans, c)
    row, own = first * H + h, sub + u
    q, k, G, dA = q + row * K, k + row * K, G + row * K, dA + row * BT
    total = load(G, own, i, n, H * K, K)

    # Reads of this sub-chunk, of earlier ones: split at the end of those.
    before = tl.minimum(sub, n)
    middle = tl.load(G + (sub - 1) * H * K + i, mask=below(i, K, (sub > 0) & (sub <= n)), other=0.0)
    X = load(k, t, i, before, H * K, K).to(tl.float32)
    X *= decay(middle[None, :] - load(G, t, i, before, H * K, K))
    D = load(dA, own, t, n, H * BT, before)
    dQ = tl.dot(operand(D, KIND), operand(X, KIND)) * decay(total - middle[None, :])
    # Writes of this sub-chunk, read by later ones: split at its own end.
    later = (t >= sub + BC) & (t < n)
    at, inside = t[:, None] * H * K + i[None, :], later[:, None] & (i[None, :] < K)
    end = tl.load(G + (sub + BC - 1) * H * K + i, mask=below(i, K, sub + BC <= n), other=0.0)
    X = tl.load(q + at, mask=inside, other=0.0).to(tl.float32)
    X *= decay(tl.load(G + at, mask=inside, other=0.0) - end[None, :])
    D = tl.load(dA + t[None, :] * H * BT + own[:, None], mask=later[None, :], other=0.0)
    dX = tl.dot(operand(D, KIND), operand(X, KIND)) * decay(end[None, :] - total)

    for b in range(tl.minimum(BC, n - sub)):
        at_b = (sub + b) * H * K + i
        gates = tl.load(G + at_b, mask=i < K, other=0.0)[None, :]
        key = tl.load(k + at_b, mask=i < K, other=0.0).to(tl.float32)
        query = tl.load(q + at_b, mask=i < K, other=0.0).to(tl.float32)
        reads = tl.load(dA + own * H * BT + sub + b, mask=own < n, other=0.0)
        writes = tl.load(dA + (sub + b) * H * BT + own, mask=u <= b, other=0.0)
        dQ += reads[:, None] * key[None, :] * decay(tl.where(u[:, None] >= b, total - gates, float("-inf")))
        dX += writes[:, None] * query[None, :] * decay(tl.where(u[:, None] <= b, gates - total, float("-inf")))
    store(dq + row * K, dQ, own, i, n, H * K, K)
    store(dk + row * K, dX, own, i, n, H * K, K)


@triton.jit(do_not_specialize=["H", "tokens"])
def gradients(q, k, v, G, dA, inner_dq, inner_dk, kept, dkept, do, spans, dq, dk, dg, scale, H, tokens, K: constexpr,
              V: constexpr, CHANNELS: constexpr, GATES: constexpr, KIND: constexpr, BT: constexpr, BK: constexpr,
              BV: constexpr):  # fmt: skip
    """Write dq, dk and dg of a chunk for some channels; dg of one gate for all channels in parts, [parts, tokens, H].

    A gate scales what was written before it and is read from it on. Of what stays inside the chunk that is reads minus writes
    from it on; of what entered the chunk, reads from it on; of what leaves it, writes before it; and the state that passes.
    """
    c, h, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BT)
    i = tl.program_id(2) * BK + tl.arange(0, BK)
    first, n = span(spans, c)
    row, last = first * H + h, (n - 1) * H
    if CHANNELS > 0:
        G += row * (K if CHANNELS == 2 else 1)
    kept, dkept = kept + (c * H + h) * K * V, dkept + (c * H + h) * K * V
    dQ, dX = tl.zeros([BT, BK], tl.float32), tl.zeros([BT, BK], tl.float32)
    through = tl.zeros([BK], tl.float32)
    for offset in range(0, V, BV):
        j = offset + tl.arange(0, BV)
        S, dS = load_turned(kept, i, j, K, V, V), load_turned(dkept, i, j, K, V, V)
        dQ = tl.dot(operand(load(do + row * V, t, j, n, H * V, V), KIND), operand(S, KIND), dQ)
        dX = tl.dot(operand(load(v + row * V, t, j, n, H * V, V), KIND), operand(dS, KIND), dX)
        if GATES:
            through += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 0)
    Q, X = load(q + row * K, t, i, n, H * K, K), load(k + row * K, t, i, n, H * K, K)
    dQ *= scale
    if CHANNELS == 2:
        total = load(G, t, i, n, H * K, K)
        end = tl.load(G + last * K + i, mask=i < K, other=0.0)
        dQ *= decay(total)
        dX *= decay(end[None, :] - total)
        inner_dQ, inner_dX = load(inner_dq + row * K, t, i, n, H * K, K), load(inner_dk + row * K, t, i, n, H * K, K)
    else:
        if CHANNELS == 1:
            total = tl.load(G + t * H, mask=t < n, other=0.0)
            end = tl.load(G + last)
            dQ *= decay(total)[:, None]
            dX *= decay(end - total)[:, None]
        D = load(dA + row * BT, t, t, n, H * BT, BT)
        D = operand(D * pair_decay(G, t, n, H, CHANNELS), KIND)
        inner_dQ = tl.dot(D, operand(X, KIND))
        inner_dX = tl.dot(tl.trans(D), operand(Q, KIND))
    store(dq + row * K, dQ + inner_dQ, t, i, n, H * K, K)
    store(dk + row * K, dX + inner_dX, t, i, n, H * K, K)
    if GATES:
        Q, X = Q.to(tl.float32), X.to(tl.float32)
        reads, writes = Q * (dQ + inner_dQ) - X * inner_dX, X * dX
        through *= decay(end)
        if CHANNELS == 2:
            flow = tl.cumsum(reads, 0, reverse=True) + tl.cumsum(writes, 0) - writes + through[None, :]
            store(dg + row * K, flow, t, i, n, H * K, K)
        else:
            reads, writes = tl.sum(reads, 1), tl.sum(writes, 1)
            flow = tl.cumsum(reads, 0, reverse=True) + tl.cumsum(writes, 0) - writes + tl.sum(through, 0)
            tl.store(dg + tl.program_id(2).to(tl.int64) * tokens * H + row + t * H, flow, mask=t < n)
