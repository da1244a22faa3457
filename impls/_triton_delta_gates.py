# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Log gates summed over a chunk, what they do to q and k, and the gradient of a gate.

With G_i the sum of a chunk's gates up to token i, what reads the entering state is multiplied by exp(G_i), and what a token
writes by exp(G_end - G_i) when the chunk ends. A gate multiplies every write before it in every read from it on, so its
gradient is a sum of reads minus writes from its token to the end of the chunk, plus what the chunk's end carries on:

    dg_i = sum_{j >= i} (q_j . dq_j + k_j . dk_j as a reader - k_j . dk_j as a writer) + rowsum(S_end * dS_end)

Gates of channels have to be multiplied into the operands of products, which rounds those. A gate that all channels share is
not: it multiplies what is read, and the values that are written, since a rounded key goes through a whole row of the state.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_chunks import span
from linverify.impls._triton_rows import load, store


@triton.jit(do_not_specialize=["H"])
def scalar_sums(g, G, end, spans, H, C: constexpr):
    """Write G and exp(G_end) of chunk c and head h, for a gate that all channels share."""
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    t = tl.arange(0, C)
    row = first * H + h
    sums = tl.cumsum(tl.load(g + row + t * H, mask=t < n, other=0.0).to(tl.float32), 0)
    tl.store(G + row + t * H, sums, mask=t < n)
    tl.store(end + c * H + h, tl.exp(tl.sum(tl.where(t == C - 1, sums, 0.0), 0)))


@triton.jit
def scalar_decays(G, t, n, H):
    """Decays of a chunk's tokens exp(G), and of their writes until its end exp(G_end - G), [C]; 1 and 0 beyond its end."""
    sums = tl.load(G + t * H, mask=t < n, other=0.0)
    last = tl.sum(tl.where(t == n - 1, sums, 0.0), 0)
    return tl.exp(sums), tl.exp(tl.where(t < n, last - sums, float("-inf")))


@triton.jit(do_not_specialize=["H"])
def channel_sums(q, k, g, G, reads, removes, writes, end, spans, H, K, C: constexpr, BK: constexpr):
    """Write G, q exp(G), k exp(G), k exp(G_end - G) and exp(G_end) of chunk c, head h and one block of channels."""
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    t, d = tl.arange(0, C), tl.program_id(2) * BK + tl.arange(0, BK)
    row = first * H + h
    sums = tl.cumsum(load(g + row * K, t, d, n, H * K, K).to(tl.float32), 0)
    last = tl.sum(tl.where(t[:, None] == C - 1, sums, 0.0), 0)
    store(G + row * K, sums, t, d, n, H * K, K)
    tl.store(end + (c * H + h).to(tl.int64) * K + d, tl.exp(last), mask=d < K)
    Q, X = load(q + row * K, t, d, n, H * K, K), load(k + row * K, t, d, n, H * K, K)
    store(reads + row * K, Q * tl.exp(sums), t, d, n, H * K, K)
    store(removes + row * K, X * tl.exp(sums), t, d, n, H * K, K)
    store(writes + row * K, X * tl.exp(last[None, :] - sums), t, d, n, H * K, K)


@triton.jit
def gate_gradients(flow, carried, dg, spans, W, C: constexpr, BW: constexpr):
    """Write dg of chunk c and some of the W gates of a token: flow [tokens, W] summed from each token on, plus the carried."""
    c = tl.program_id(0)
    first, n = span(spans, c)
    t, w = tl.arange(0, C), tl.program_id(1) * BW + tl.arange(0, BW)
    rest = tl.cumsum(load(flow + first * W, t, w, n, W, W), 0, reverse=True)
    beyond = tl.load(carried + c.to(tl.int64) * W + w, mask=w < W, other=0.0)
    store(dg + first * W, rest + beyond[None, :], t, w, n, W, W)
