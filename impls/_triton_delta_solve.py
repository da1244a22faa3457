# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The triangular system of a chunk, and its gradient.

The values U' that a chunk writes depend on the state S that it began with: (1 + A) U' = beta (v - k' S), where
A_ij = beta_i s_ij below the diagonal, s the decayed products of keys, and k' the keys decayed since the chunk began. The
inverse is found once, so that U' = U - W S with U and W the same for every state: only that product is left for the pass over
the chunks.

The inverse is found by forward substitution. A Neumann or doubling series would lose all digits where keys repeat: its terms
reach 10^17 though no element of the inverse exceeds 2.

Source: Yang et al. 2024 (arXiv 2406.06484), section 3.2 (UT transform).
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span
from linverify.impls._triton_delta_gates import scalar_decays
from linverify.impls._triton_rows import load, load_turned, product, store


@triton.jit
def coupling(s, beta, r, H, i, C: constexpr):
    """Row r of A [C]."""
    return tl.load(s + r * H * C + i, mask=i < r, other=0.0) * tl.load(beta + r * H).to(tl.float32)


@triton.jit(do_not_specialize=["H"])
def invert(s, beta, inverse, spans, H, C: constexpr):
    """Write (1 + A)^-1 [C, C] of chunk c and head h in float32, row after row; the next row of A is fetched meanwhile."""
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    i = tl.arange(0, C)
    row = first * H + h
    X = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    A = coupling(s + row * C, beta + row, 0, H, i, C)
    for r in range(n):
        following = coupling(s + row * C, beta + row, tl.minimum(r + 1, n - 1), H, i, C)
        X = tl.where(i[:, None] == r, X - tl.sum(A[:, None] * X, 0)[None, :], X)
        A = following
    store(inverse + row * C, X, i, i, n, H * C, C)


@triton.jit(do_not_specialize=["H"])
def solve(
    inverse, beta, G, removes, v, W, U, spans, H, K, V, GATE: constexpr, C: constexpr, BK: constexpr, BV: constexpr
):  # fmt: skip
    """Write W = inverse (beta k') and U = inverse (beta v) of chunk c and head h."""
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    i = tl.arange(0, C)
    row = first * H + h
    strength = tl.load(beta + row + i * H, mask=i < n, other=0.0).to(tl.float32)
    X = load(inverse + row * C, i, i, n, H * C, C) * strength[None, :]
    Y = X.to(v.dtype.element_ty)
    if GATE == "scalar":
        since, _ = scalar_decays(G + row, i, n, H)
        X = X * since[None, :]
    X = X.to(v.dtype.element_ty)
    for start in range(0, K, BK):
        d = start + tl.arange(0, BK)
        store(W + row * K, product(X, load(removes + row * K, i, d, n, H * K, K)), i, d, n, H * K, K)
    for start in range(0, V, BV):
        d = start + tl.arange(0, BV)
        store(U + row * V, product(Y, load(v + row * V, i, d, n, H * V, V)), i, d, n, H * V, V)


@triton.jit(do_not_specialize=["H"])
def solve_gradients(
    s, beta, inverse, v, written, do, dwritten, dright, dv, dbeta, dscores, dsimilar, spans, scale, H, V,
    C: constexpr, BV: constexpr,
):  # fmt: skip
    """Write what chunk c and head h owe to U': the gradients of v, of beta (a part), of the scores and of s.

    The right-hand side beta (v - k' S) receives dright = inverse^T dU', and A receives -dright U'^T.
    """
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    i = tl.arange(0, C)
    row = first * H + h
    strength = tl.load(beta + row + i * H, mask=i < n, other=0.0).to(tl.float32)
    X = load_turned(inverse + row * C, i, i, n, H * C, C).to(v.dtype.element_ty)
    dA, db = tl.zeros([C, C], tl.float32), tl.zeros([C], tl.float32)
    for start in range(0, V, BV):
        d = start + tl.arange(0, BV)
        Y = load_turned(written + row * V, i, d, n, H * V, V)
        R = product(X, load(dwritten + row * V, i, d, n, H * V, V))
        dA -= product(R.to(Y.dtype), Y)
        db += tl.sum(R * load(v + row * V, i, d, n, H * V, V).to(tl.float32), 1)
        store(dright + row * V, R, i, d, n, H * V, V)
        store(dv + row * V, strength[:, None] * R, i, d, n, H * V, V)
    dA = tl.where(i[:, None] > i[None, :], dA, 0.0)
    db += tl.sum(dA * load(s + row * C, i, i, n, H * C, i[:, None]), 1)
    tl.store(dbeta + row + i * H, db, mask=i < n)
    store(dsimilar + row * C, strength[:, None] * dA, i, i, n, H * C, C)
    # By itself, since two sums of this size at a time do not fit into the registers of two warps.
    dP = tl.zeros([C, C], tl.float32)
    for start in range(0, V, BV):
        d = start + tl.arange(0, BV)
        Y = load_turned(written + row * V, i, d, n, H * V, V)
        dP += product(load(do + row * V, i, d, n, H * V, V), Y)
    store(dscores + row * C, tl.where(i[:, None] >= i[None, :], scale * dP, 0.0), i, i, n, H * C, C)
