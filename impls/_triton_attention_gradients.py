# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Gradients of softmax attention: weights are computed again from lse, tile by tile, so none is ever stored.

With P the weights and D_i = o_i . do_i:   dv = P^T do,   dS = P * (do v^T - D),   dq = scale dS k,   dk = scale dS^T q.

Queries and keys have a pass each, so that every sum is one program's and no result depends on the order of programs.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_attention_tiles import keys_of, queries_of, seen, tile
from linverify.impls._triton_rows import load, product, store


@triton.jit
def weights_and_gradient(Q, X, Y, dO, row_lse, D, scale, mask):
    """P and dS [queries, keys] of one pair of tiles."""
    scores = scale * product(Q, tl.trans(X))
    P = tl.where(mask, tl.exp(scores - row_lse[:, None]), 0.0)
    return P, P * (product(dO, tl.trans(Y)) - D[:, None])


@triton.jit(do_not_specialize=["H", "G", "window"])
def of_queries(
    q, k, v, do, lse, wide, D, dq, table, scale, window, H, G, K, V,
    CAUSAL: constexpr, WINDOWED: constexpr, BT: constexpr, BS: constexpr, BK: constexpr, BV: constexpr,
):  # fmt: skip
    """Write dq and D of one tile of queries of head h; `wide` is o before its rounding."""
    h = tl.program_id(1)
    start, at, T = tile(table, tl.program_id(0))
    i, s, d, e = at + tl.arange(0, BT), tl.arange(0, BS), tl.arange(0, BK), tl.arange(0, BV)
    row, key = start * H + h, start * G + h // (H // G)
    Q, dO = load(q + row * K, i, d, T, H * K, K), load(do + row * V, i, e, T, H * V, V)
    row_lse = tl.load(lse + row + i * H, mask=i < T, other=0.0)
    row_D = tl.sum(load(wide + row * V, i, e, T, H * V, V) * dO, 1)
    tl.store(D + row + i * H, row_D, mask=i < T)
    dQ = tl.zeros([BT, BK], tl.float32)
    first, stop = keys_of(at, T, window, CAUSAL, WINDOWED, BT, BS)
    for begin in range(first, stop, BS):
        j = begin + s
        X, Y = load(k + key * K, j, d, T, G * K, K), load(v + key * V, j, e, T, G * V, V)
        mask = seen(i, j, T, window, CAUSAL, WINDOWED)
        _, dS = weights_and_gradient(Q, X, Y, dO, row_lse, row_D, scale, mask)
        dQ += product(dS.to(X.dtype), X)
    store(dq + row * K, scale * dQ, i, d, T, H * K, K)


@triton.jit(do_not_specialize=["H", "G", "window"])
def of_keys(
    q, k, v, do, lse, D, dk, dv, table, scale, window, H, G, K, V,
    CAUSAL: constexpr, WINDOWED: constexpr, BT: constexpr, BS: constexpr, BK: constexpr, BV: constexpr,
):  # fmt: skip
    """Write dk and dv of one tile of keys of group g, which H / G heads read."""
    g = tl.program_id(1)
    start, at, T = tile(table, tl.program_id(0))
    t, j, d, e = tl.arange(0, BT), at + tl.arange(0, BS), tl.arange(0, BK), tl.arange(0, BV)
    key = start * G + g
    X, Y = load(k + key * K, j, d, T, G * K, K), load(v + key * V, j, e, T, G * V, V)
    dX, dY = tl.zeros([BS, BK], tl.float32), tl.zeros([BS, BV], tl.float32)
    first, stop = queries_of(at, T, window, CAUSAL, WINDOWED, BT, BS)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        row = start * H + h
        for begin in range(first, stop, BT):
            i = begin + t
            Q, dO = load(q + row * K, i, d, T, H * K, K), load(do + row * V, i, e, T, H * V, V)
            row_lse = tl.load(lse + row + i * H, mask=i < T, other=0.0)
            row_D = tl.load(D + row + i * H, mask=i < T, other=0.0)
            mask = seen(i, j, T, window, CAUSAL, WINDOWED)
            P, dS = weights_and_gradient(Q, X, Y, dO, row_lse, row_D, scale, mask)
            dY += product(tl.trans(P.to(dO.dtype)), dO)
            dX += product(tl.trans(dS.to(Q.dtype)), Q)
    store(dk + key * K, scale * dX, j, d, T, G * K, K)
    store(dv + key * V, dY, j, e, T, G * V, V)
