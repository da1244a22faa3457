# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Log gates summed over a chunk, what they do to q and k, and the gradient of a gate.

With G_i the sum of a chunk's gates up to token i, what reads the entering state is multiplied by exp(G_i), and what a token
writes by exp(G_end - G_i) when the chunk ends. A gate multiplies every write before it in every read from it on, so its
gradient is a sum of reads minus writes from its token to the end of the chunk, plus what the chunk's end carries on:

    dg_i = sum_{j >= i} (q_j . dq_j + k_j . dk_j as a reader - k_j . dk_j as a writer) + rowsum(S_end * dS_end)
"""

import triton
import triton.language as tl
from triton.language import constexpr

from linverify.impls._triton_delta_chunks import span
from linverify.impls._triton_rows import load, store


@triton.jit(do_not_specialize=["H"])
def decays(q, k, g, G, reads, removes, writes, end, spans, H, K, GATE: constexpr, C: constexpr, BK: constexpr):
    """Write G, q exp(G), k exp(G), k exp(G_end - G) and exp(G_end) of chunk c, head h and one block of channels."""
    c, h = tl.program_id(0), tl.program_id(1)
    first, n = span(spans, c)
    t, d = tl.arange(0, C), tl.program_id(2) * BK + tl.arange(0, BK)
    row = first * H + h
    if GATE == "channel":
        gates = load(g + row * K, t, d, n, H * K, K).to(tl.float32)
        total = tl.cumsum(gates, 0)
        store(G + row * K, total, t, d, n, H * K, K)
        last = tl.sum(tl.where(t[:, None] == C - 1, total, 0.0), 0)
        tl.store(end + (c * H + h).to(tl.int64) * K + d, tl.exp(last), mask=d < K)
        until = tl.exp(last[None, :] - total)
    else:
        gates = tl.load(g + row + t * H, mask=t < n, other=0.0).to(tl.float32)
        sums = tl.cumsum(gates, 0)
        tl.store(G + row + t * H, sums, mask=t < n)
        final = tl.sum(tl.where(t == C - 1, sums, 0.0), 0)
        tl.store(end + c * H + h, tl.exp(final))
        total = sums[:, None]
        until = tl.exp(final - total)
    since = tl.exp(total)
    Q = load(q + row * K, t, d, n, H * K, K).to(tl.float32)
    X = load(k + row * K, t, d, n, H * K, K).to(tl.float32)
    store(reads + row * K, Q * since, t, d, n, H * K, K)
    store(removes + row * K, X * since, t, d, n, H * K, K)
    store(writes + row * K, X * until, t, d, n, H * K, K)


@triton.jit
def gate_gradients(flow, carried, dg, spans, W, C: constexpr, BW: constexpr):
    """Write dg of chunk c and some of the W gates of a token: flow [tokens, W] summed from each token on, plus the carried."""
    c = tl.program_id(0)
    first, n = span(spans, c)
    t, w = tl.arange(0, C), tl.program_id(1) * BW + tl.arange(0, BW)
    rest = tl.cumsum(load(flow + first * W, t, w, n, W, W), 0, reverse=True)
    beyond = tl.load(carried + c.to(tl.int64) * W + w, mask=w < W, other=0.0)
    store(dg + first * W, rest + beyond[None, :], t, w, n, W, W)
