# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Scores inside a chunk where every channel decays by itself: sum_d q_id k_jd exp(G_id - G_jd), with no exponent above 0.

A chunk is cut into sub-chunks of 16. Between two of them the exponent is split at a token between reader and writer,
(G_i - G_ref) + (G_ref - G_j), which leaves a matrix product; inside one the difference is taken for every pair. Split at the
chunk's first token instead, exp(-G_j) would overflow once gates sum below -88.

Source: Yang et al. 2023 (arXiv 2312.06635), section 4.3 (secondary chunking).
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span
from linverify.impls._triton_rows import load, product, store

# What a gate sum is beyond the end: exp of it is 0, for any sum it is compared with.
BEYOND = constexpr(float("-inf"))


@triton.jit
def row_of(x, t, d, stride, width):
    """Row t in float32; zeros where t is -1."""
    return tl.load(x + t * stride + d, mask=d < tl.where(t < 0, 0, width), other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["H"])
def channel_scores(q, k, G, P, s, spans, H, K, C: constexpr, BC: constexpr, BK: constexpr):
    """Write P and s [BC, C], up to the diagonal, for one sub-chunk of readers."""
    NB: constexpr = C // BC
    c, a, h = tl.program_id(0) // NB, tl.program_id(0) % NB, tl.program_id(1)
    first, n = span(spans, c)
    lo = a * BC
    if lo < n:
        row = first * H + h
        q, k, G, P, s = q + row * K, k + row * K, G + row * K, P + row * C, s + row * C
        j, d = tl.arange(0, BC), tl.arange(0, BK)
        t = lo + j
        Q, X, total = load(q, t, d, n, H * K, K), load(k, t, d, n, H * K, K), load(G, t, d, n, H * K, K, BEYOND)
        # Between sub-chunks: split at the token before this one.
        ref = row_of(G, lo - 1, d, H * K, K)[None, :]
        since = tl.exp(total - ref)
        Qd, Xd = (Q * since).to(q.dtype.element_ty), (X * since).to(q.dtype.element_ty)
        for b in range(a):
            u = b * BC + j
            Y = load(k, u, d, n, H * K, K) * tl.exp(ref - load(G, u, d, n, H * K, K))
            Y = tl.trans(Y.to(q.dtype.element_ty))
            store(P, product(Qd, Y), t, u, n, H * C, C)
            store(s, product(Xd, Y), t, u, n, H * C, C)
        # Inside: writer by writer.
        A, B = tl.zeros([BC, BC], tl.float32), tl.zeros([BC, BC], tl.float32)
        for m in range(min(BC, n - lo)):
            between = tl.where((j >= m)[:, None], total - row_of(G, lo + m, d, H * K, K)[None, :], BEYOND)
            Y = row_of(k, lo + m, d, H * K, K)[None, :] * tl.exp(between)
            A = tl.where((j == m)[None, :], tl.sum(Q * Y, 1)[:, None], A)
            B = tl.where((j == m)[None, :], tl.sum(X * Y, 1)[:, None], B)
        store(P, A, t, t, n, H * C, C)
        store(s, B, t, t, n, H * C, C)


@triton.jit(do_not_specialize=["H"])
def channel_score_gradients(
    q, k, G, dP, ds, dq_part, dreader, dwriter, dq, dk, flow, spans, H, K, C: constexpr, BC: constexpr, BK: constexpr
):  # fmt: skip
    """Add the chunk's own part to the gradients of q and k, and write reads minus writes for each gate.

    One sub-chunk, one block of channels. dP and ds [C, C] are zero above the diagonal, and ds on it. flow is [tokens, H, K].
    """
    NB: constexpr = C // BC
    c, a, h = tl.program_id(0) // NB, tl.program_id(0) % NB, tl.program_id(1)
    first, n = span(spans, c)
    lo = a * BC
    if lo < n:
        row = first * H + h
        q, k, G, dP, ds = q + row * K, k + row * K, G + row * K, dP + row * C, ds + row * C
        j, d = tl.arange(0, BC), tl.program_id(2) * BK + tl.arange(0, BK)
        t = lo + j
        Q, X, total = load(q, t, d, n, H * K, K), load(k, t, d, n, H * K, K), load(G, t, d, n, H * K, K, BEYOND)
        # As readers, of earlier sub-chunks and of their own.
        dQ, read = tl.zeros([BC, BK], tl.float32), tl.zeros([BC, BK], tl.float32)
        ref = row_of(G, lo - 1, d, H * K, K)[None, :]
        for b in range(a):
            u = b * BC + j
            Y = (load(k, u, d, n, H * K, K) * tl.exp(ref - load(G, u, d, n, H * K, K))).to(q.dtype.element_ty)
            dQ += product(load(dP, t, u, n, H * C, C).to(Y.dtype), Y)
            read += product(load(ds, t, u, n, H * C, C).to(Y.dtype), Y)
        dQ, read = dQ * tl.exp(total - ref), read * tl.exp(total - ref)
        for m in range(min(BC, n - lo)):
            between = tl.where((j >= m)[:, None], total - row_of(G, lo + m, d, H * K, K)[None, :], BEYOND)
            Y = row_of(k, lo + m, d, H * K, K)[None, :] * tl.exp(between)
            dQ += tl.load(dP + t * H * C + lo + m, mask=t < n, other=0.0)[:, None] * Y
            read += tl.load(ds + t * H * C + lo + m, mask=t < n, other=0.0)[:, None] * Y
        # As writers, read by later sub-chunks and by their own.
        wrote = tl.zeros([BC, BK], tl.float32)
        if lo + BC < n:
            ref = row_of(G, lo + BC - 1, d, H * K, K)[None, :]
            for b in range(a + 1, (n + BC - 1) // BC):
                u = b * BC + j
                since = tl.exp(load(G, u, d, n, H * K, K, BEYOND) - ref)
                Y = (load(q, u, d, n, H * K, K) * since).to(q.dtype.element_ty)
                wrote += product(tl.trans(load(dP, u, t, n, H * C, C)).to(Y.dtype), Y)
                Y = (load(k, u, d, n, H * K, K) * since).to(q.dtype.element_ty)
                wrote += product(tl.trans(load(ds, u, t, n, H * C, C)).to(Y.dtype), Y)
            wrote = wrote * tl.exp(ref - total)
        for m in range(min(BC, n - lo)):
            inside = (j <= m) & (t < n)
            between = tl.where(inside[:, None], row_of(G, lo + m, d, H * K, K)[None, :] - total, BEYOND)
            A = tl.load(dP + (lo + m) * H * C + t, mask=inside, other=0.0)[:, None]
            B = tl.load(ds + (lo + m) * H * C + t, mask=inside, other=0.0)[:, None]
            Y = A * row_of(q, lo + m, d, H * K, K)[None, :] + B * row_of(k, lo + m, d, H * K, K)[None, :]
            wrote += Y * tl.exp(between)
        dQ += load(dq_part + row * K, t, d, n, H * K, K)
        read += load(dreader + row * K, t, d, n, H * K, K)
        wrote += load(dwriter + row * K, t, d, n, H * K, K)
        store(dq + row * K, dQ, t, d, n, H * K, K)
        store(dk + row * K, read + wrote, t, d, n, H * K, K)
        store(flow + row * K, Q * dQ + X * (read - wrote), t, d, n, H * K, K)
