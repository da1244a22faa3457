# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of the chunkwise form for what a gate shapes inside a chunk: decayed scores, and the gradients of q, k and gates.

Names and layouts as in `_triton_chunks`. With one gate for all channels (or none) a score is a product times exp(G_i - G_j),
masked before exp. With a gate per channel the decay sits inside the product. Then a chunk is cut into sub-chunks of BC tokens:
between two of them the exponent is split at a token that lies between, (G_i - G_ref) + (G_ref - G_j), both at most 0, which
leaves a matrix product; inside one it is taken for every pair, a column at a time.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import decay, operand


@triton.jit
def below(i, size, there):
    """The mask i < size, or none of it; by a number, since Triton's interpreter does not spread a scalar condition."""
    return i < size * there.to(tl.int32)


@triton.jit
def pair_decay(G, row, real, t, CHANNELS: constexpr):
    """What a read i finds of a write j of its chunk, [BT, BT]; 0 for later writes."""
    causal = t[:, None] >= t[None, :]
    if CHANNELS == 1:
        total = tl.load(G + row, mask=real, other=0.0)
        found = decay(tl.where(causal, total[:, None] - total[None, :], float("-inf")))
    else:
        found = tl.where(causal, 1.0, 0.0)
    return found


@triton.jit(do_not_specialize=["H", "chunks"])
def scores(q, k, G, A, chunks, scale, H, K: constexpr, CHANNELS: constexpr, KIND: constexpr, BT: constexpr,
           BK: constexpr):  # fmt: skip
    """Write A = scale q k^T exp(G_i - G_j) of a chunk; one gate for all channels."""
    c, h, t = tl.program_id(0), tl.program_id(1), tl.arange(0, BT)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    q, k, A = q + origin * K, k + origin * K, A + origin * BT
    if CHANNELS > 0:
        G += origin * (K if CHANNELS == 2 else 1)
    row, real = t * H, t < count
    acc = tl.zeros([BT, BT], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        Q = tl.load(q + row[:, None] * K + i[None, :], mask=real[:, None] & (i[None, :] < K), other=0.0)
        X = tl.load(k + row[None, :] * K + i[:, None], mask=real[None, :] & (i[:, None] < K), other=0.0)
        acc = tl.dot(operand(Q, KIND), operand(X, KIND), acc)
    # The mask once more: a product that overflows to infinity, times a decay of 0, would be NaN.
    acc = tl.where(t[:, None] >= t[None, :], acc * scale * pair_decay(G, row, real, t, CHANNELS), 0.0)
    tl.store(A + row[:, None] * BT + t[None, :], acc.to(A.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=["H", "chunks"])
def channel_scores(q, k, G, A, chunks, scale, H, K: constexpr, KIND: constexpr, BT: constexpr, BC: constexpr,
                   BK: constexpr):  # fmt: skip
    """Write the rows of A that belong to a sub-chunk: sum_d scale q_id k_jd exp(G_id - G_jd)."""
    c, h, sub, t, u = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BC, tl.arange(0, BT), tl.arange(0, BC)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    q, k, G, A = q + origin * K, k + origin * K, G + origin * K, A + origin * BT
    row, real = (sub + u) * H, sub + u < count
    column, earlier = t * H, (t < sub) & (t < count)
    far, near = tl.zeros([BC, BT], tl.float32), tl.zeros([BC, BC], tl.float32)
    for offset in range(0, K, BK):
        i = offset + tl.arange(0, BK)
        at, inside = row[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
        at_x, in_x = column[None, :] * K + i[:, None], earlier[None, :] & (i[:, None] < K)
        Q = tl.load(q + at, mask=inside, other=0.0).to(tl.float32) * scale
        total = tl.load(G + at, mask=inside, other=0.0)
        # Split at the end of the earlier sub-chunks; the first one has none.
        middle = tl.load(G + (sub - 1) * H * K + i, mask=below(i, K, (sub > 0) & (sub <= count)), other=0.0)
        X = tl.load(k + at_x, mask=in_x, other=0.0).to(tl.float32)
        X *= decay(middle[:, None] - tl.load(G + at_x, mask=in_x, other=0.0))
        far = tl.dot(operand(Q * decay(total - middle[None, :]), KIND), operand(X, KIND), far)
        for b in range(tl.minimum(BC, count - sub)):
            at_b, in_b = (sub + b) * H * K + i, i < K
            key = tl.load(k + at_b, mask=in_b, other=0.0).to(tl.float32)
            gone = total - tl.load(G + at_b, mask=in_b, other=0.0)[None, :]
            found = tl.sum(Q * key[None, :] * decay(tl.where(u[:, None] >= b, gone, float("-inf"))), 1)
            near = tl.where((u[None, :] == b) & (u[:, None] >= b), near + found[:, None], near)
    elsewhere = (t[None, :] < sub) | (t[None, :] >= sub + BC)
    tl.store(A + row[:, None] * BT + t[None, :], far.to(A.dtype.element_ty), mask=real[:, None] & elsewhere)
    tl.store(A + row[:, None] * BT + sub + u[None, :], near.to(A.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=["H", "chunks"])
def channel_gradients(q, k, G, dA, chunks, dq, dk, H, K: constexpr, KIND: constexpr, BT: constexpr, BC: constexpr,
                      BK: constexpr):  # fmt: skip
    """Write what dA alone gives of dq and dk, float32, for one sub-chunk and some channels."""
    c, h, t, u = tl.program_id(0), tl.program_id(1), tl.arange(0, BT), tl.arange(0, BC)
    sub, i = tl.program_id(2) % (BT // BC) * BC, tl.program_id(2) // (BT // BC) * BK + tl.arange(0, BK)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    q, k, G, dA = q + origin * K, k + origin * K, G + origin * K, dA + origin * BT
    dq, dk = dq + origin * K, dk + origin * K
    row, real = (sub + u) * H, sub + u < count
    other = t * H
    earlier, later = (t < sub) & (t < count), (t >= sub + BC) & (t < count)
    at, inside = row[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
    at_x = other[:, None] * K + i[None, :]
    in_e, in_l = earlier[:, None] & (i[None, :] < K), later[:, None] & (i[None, :] < K)
    total = tl.load(G + at, mask=inside, other=0.0)

    # Reads of this sub-chunk, of earlier ones: split at the end of those.
    middle = tl.load(G + (sub - 1) * H * K + i, mask=below(i, K, (sub > 0) & (sub <= count)), other=0.0)
    X = tl.load(k + at_x, mask=in_e, other=0.0).to(tl.float32)
    X *= decay(middle[None, :] - tl.load(G + at_x, mask=in_e, other=0.0))
    D = tl.load(dA + row[:, None] * BT + t[None, :], mask=real[:, None] & earlier[None, :], other=0.0)
    dQ = tl.dot(operand(D, KIND), operand(X, KIND)) * decay(total - middle[None, :])
    # Writes of this sub-chunk, read by later ones: split at its own end.
    end = tl.load(G + (sub + BC - 1) * H * K + i, mask=below(i, K, sub + BC <= count), other=0.0)
    X = tl.load(q + at_x, mask=in_l, other=0.0).to(tl.float32)
    X *= decay(tl.load(G + at_x, mask=in_l, other=0.0) - end[None, :])
    D = tl.load(dA + other[None, :] * BT + sub + u[:, None], mask=later[None, :], other=0.0)
    dX = tl.dot(operand(D, KIND), operand(X, KIND)) * decay(end[None, :] - total)

    for b in range(tl.minimum(BC, count - sub)):
        at_b, in_b = (sub + b) * H * K + i, i < K
        gates = tl.load(G + at_b, mask=in_b, other=0.0)[None, :]
        key = tl.load(k + at_b, mask=in_b, other=0.0).to(tl.float32)
        query = tl.load(q + at_b, mask=in_b, other=0.0).to(tl.float32)
        reads = tl.load(dA + row * BT + sub + b, mask=real, other=0.0)
        writes = tl.load(dA + (sub + b) * H * BT + sub + u, mask=u <= b, other=0.0)
        dQ += reads[:, None] * key[None, :] * decay(tl.where(u[:, None] >= b, total - gates, float("-inf")))
        dX += writes[:, None] * query[None, :] * decay(tl.where(u[:, None] <= b, gates - total, float("-inf")))
    tl.store(dq + at, dQ, mask=inside)
    tl.store(dk + at, dX, mask=inside)


@triton.jit(do_not_specialize=["H", "tokens", "chunks"])
def gradients(q, k, v, G, dA, inner_dq, inner_dk, kept, dkept, do, chunks, dq, dk, dg, scale, H, tokens, K: constexpr,
              V: constexpr, CHANNELS: constexpr, GATES: constexpr, KIND: constexpr, BT: constexpr, BK: constexpr,
              BV: constexpr):  # fmt: skip
    """Write dq, dk and dg of a chunk for some channels; dg of one gate for all channels in parts, [parts, tokens, H].

    A gate scales what was written before it and is read from it on. Of what stays inside the chunk that is reads minus writes
    from it on; of what entered the chunk, reads from it on; of what leaves it, writes before it; and the state that passes.
    """
    c, h, t = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BT)
    i = tl.program_id(2) * BK + tl.arange(0, BK)
    first, count = tl.load(chunks + 2 * c), tl.load(chunks + 2 * c + 1).to(tl.int32)
    origin = first * H + h
    q, k, dq, dk = q + origin * K, k + origin * K, dq + origin * K, dk + origin * K
    v, do, dA = v + origin * V, do + origin * V, dA + origin * BT
    if CHANNELS > 0:
        G += origin * (K if CHANNELS == 2 else 1)
    kept, dkept = kept + (c * H + h) * K * V, dkept + (c * H + h) * K * V
    row, real, last = t * H, t < count, (count - 1) * H
    at, inside = row[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
    dQ, dX = tl.zeros([BT, BK], tl.float32), tl.zeros([BT, BK], tl.float32)
    through = tl.zeros([BK], tl.float32)
    for offset in range(0, V, BV):
        j = offset + tl.arange(0, BV)
        at_v, in_v = row[:, None] * V + j[None, :], real[:, None] & (j[None, :] < V)
        at_s, in_s = i[None, :] * V + j[:, None], (i[None, :] < K) & (j[:, None] < V)
        S, dS = tl.load(kept + at_s, mask=in_s, other=0.0), tl.load(dkept + at_s, mask=in_s, other=0.0)
        dQ = tl.dot(operand(tl.load(do + at_v, mask=in_v, other=0.0), KIND), operand(S, KIND), dQ)
        dX = tl.dot(operand(tl.load(v + at_v, mask=in_v, other=0.0), KIND), operand(dS, KIND), dX)
        if GATES:
            through += tl.sum(S.to(tl.float32) * dS.to(tl.float32), 0)
    Q, X = tl.load(q + at, mask=inside, other=0.0), tl.load(k + at, mask=inside, other=0.0)
    dQ *= scale
    if CHANNELS == 2:
        total = tl.load(G + at, mask=inside, other=0.0)
        end = tl.load(G + last * K + i, mask=i < K, other=0.0)
        dQ *= decay(total)
        dX *= decay(end[None, :] - total)
        inner_dQ = tl.load(inner_dq + origin * K + at, mask=inside, other=0.0)
        inner_dX = tl.load(inner_dk + origin * K + at, mask=inside, other=0.0)
    else:
        if CHANNELS == 1:
            total = tl.load(G + row, mask=real, other=0.0)
            end = tl.load(G + last)
            dQ *= decay(total)[:, None]
            dX *= decay(end - total)[:, None]
        D = tl.load(dA + row[:, None] * BT + t[None, :], mask=real[:, None], other=0.0)
        D = operand(D * pair_decay(G, row, real, t, CHANNELS), KIND)
        inner_dQ = tl.dot(D, operand(X, KIND))
        inner_dX = tl.dot(tl.trans(D), operand(Q, KIND))
    tl.store(dq + at, (dQ + inner_dQ).to(dq.dtype.element_ty), mask=inside)
    tl.store(dk + at, (dX + inner_dX).to(dk.dtype.element_ty), mask=inside)
    if GATES:
        Q, X = Q.to(tl.float32), X.to(tl.float32)
        reads, writes = Q * (dQ + inner_dQ) - X * inner_dX, X * dX
        through *= decay(end)
        if CHANNELS == 2:
            flow = tl.cumsum(reads, 0, reverse=True) + tl.cumsum(writes, 0) - writes + through[None, :]
            tl.store(dg + origin * K + at, flow, mask=inside)
        else:
            reads, writes = tl.sum(reads, 1), tl.sum(writes, 1)
            flow = tl.cumsum(reads, 0, reverse=True) + tl.cumsum(writes, 0) - writes + tl.sum(through, 0)
            tl.store(dg + tl.program_id(2).to(tl.int64) * tokens * H + origin + row, flow, mask=real)
