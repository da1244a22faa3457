# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Scores inside a chunk where all channels decay alike: products of queries and keys, and of keys, times exp(G_i - G_j)."""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span
from linverify.impls._triton_rows import load, product, store


@triton.jit
def decay_between(G, t, n, H, GATE: constexpr):
    """Decays exp(G_i - G_j) [C, C] for j <= i < n, 0 elsewhere: masked before exp, since those exponents are positive."""
    causal = (t[:, None] >= t[None, :]) & (t[:, None] < n)
    if GATE == "none":
        decay = tl.where(causal, 1.0, 0.0)
    else:
        total = tl.load(G + t * H, mask=t < n, other=0.0)
        decay = tl.exp(tl.where(causal, total[:, None] - total[None, :], float("-inf")))
    return decay


@triton.jit(do_not_specialize=["H"])
def scores(q, k, G, P, s, spans, H, K, GATE: constexpr, C: constexpr, BK: constexpr):
    """Write P [C, C] of queries and keys and s [C, C] of keys, chunk c and head h."""
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    t = tl.arange(0, C)
    row = first * H + h
    A, B = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for start in range(0, K, BK):
        d = start + tl.arange(0, BK)
        X = load(k + row * K, t, d, n, H * K, K)
        A += product(load(q + row * K, t, d, n, H * K, K), tl.trans(X))
        B += product(X, tl.trans(X))
    decay = decay_between(G + row, t, n, H, GATE)
    store(P + row * C, A * decay, t, t, n, H * C, C)
    store(s + row * C, B * decay, t, t, n, H * C, C)


@triton.jit(do_not_specialize=["H"])
def score_gradients(
    q, k, G, dP, ds, dq_part, dreader, dwriter, dq, dk, flow, spans, H, K, GATE: constexpr, C: constexpr, BK: constexpr
):  # fmt: skip
    """Add the chunk's own part to the gradients of q and k, and write each token's reads minus writes for its gate.

    One block of channels of chunk c and head h; dP and ds [C, C] are zero above the diagonal, and ds on it. flow is a part for
    this block, [blocks, tokens, H].
    """
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    t, d = tl.arange(0, C), tl.program_id(2) * BK + tl.arange(0, BK)
    row = first * H + h
    Q, X = load(q + row * K, t, d, n, H * K, K), load(k + row * K, t, d, n, H * K, K)
    decay = decay_between(G + row, t, n, H, GATE)
    A = (load(dP + row * C, t, t, n, H * C, C) * decay).to(Q.dtype)
    B = (load(ds + row * C, t, t, n, H * C, C) * decay).to(Q.dtype)
    dQ = load(dq_part + row * K, t, d, n, H * K, K) + product(A, X)
    read = load(dreader + row * K, t, d, n, H * K, K) + product(B, X)
    wrote = load(dwriter + row * K, t, d, n, H * K, K) + product(tl.trans(A), Q) + product(tl.trans(B), X)
    store(dq + row * K, dQ, t, d, n, H * K, K)
    store(dk + row * K, read + wrote, t, d, n, H * K, K)
    if GATE != "none":
        tokens = tl.load(spans + 2 * tl.num_programs(0) - 1)
        each = tl.sum(Q.to(tl.float32) * dQ + X.to(tl.float32) * (read - wrote), 1)
        tl.store(flow + tl.program_id(2) * tokens * H + row + t * H, each, mask=t < n)
