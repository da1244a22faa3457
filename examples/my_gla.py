"""Gated linear attention in Triton: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = scale * S_t^T q_t.

A chunk of 16 tokens is one tile. `scan` walks the chunks and keeps the state between them (backwards, with q and do in place of
k and v, it carries the state's gradient); `read` and `gradients` then do all chunks in parallel. Products are IEEE float32.

    linverify check examples/my_gla.py
"""

import torch
import triton
import triton.language as tl
from triton.language import constexpr

import linverify

CHUNK = 16


@triton.jit(do_not_specialize=["T", "NT"])
def scan(x, y, g, states, scale, T, NT, K, V, BACK: constexpr, BT: constexpr, BK: constexpr, BV: constexpr):
    """Carry the state [K, V] of sequence n from chunk to chunk: states [N, NT + 1, K, V], x and g [N, T, K], y [N, T, V]."""
    n = tl.program_id(0).to(tl.int64)
    i, j, t = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    at_state, in_state = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
    states += n * (NT + 1) * K * V
    state = tl.load(states + (NT if BACK else 0) * K * V + at_state, mask=in_state, other=0.0)
    for step in range(NT):
        c = NT - 1 - step if BACK else step
        real = c * BT + t < T
        token = n * T + c * BT + t
        at_k, in_k = token[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
        at_v, in_v = token[:, None] * V + j[None, :], real[:, None] & (j[None, :] < V)
        X = tl.load(x + at_k, mask=in_k, other=0.0).to(tl.float32)
        Y = tl.load(y + at_v, mask=in_v, other=0.0).to(tl.float32)
        gates = tl.load(g + at_k, mask=in_k, other=0.0)
        G, end = tl.cumsum(gates, 0), tl.sum(gates, 0)
        X = X * scale * tl.exp(G if BACK else end[None, :] - G)
        state = state * tl.exp(end)[:, None] + tl.dot(tl.trans(X), Y, input_precision="ieee")
        tl.store(states + (c if BACK else c + 1) * K * V + at_state, state, mask=in_state)


@triton.jit(do_not_specialize=["T", "NT"])
def read(q, k, v, g, states, o, scale, T, NT, K, V, BT: constexpr, BK: constexpr, BV: constexpr):
    """Write o of chunk c of sequence n."""
    c, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, j, t = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    at_state, in_state = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
    real = c * BT + t < T
    token = n * T + c * BT + t
    at_k, in_k = token[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
    at_v, in_v = token[:, None] * V + j[None, :], real[:, None] & (j[None, :] < V)
    Q = tl.load(q + at_k, mask=in_k, other=0.0).to(tl.float32)
    X = tl.load(k + at_k, mask=in_k, other=0.0).to(tl.float32)
    Y = tl.load(v + at_v, mask=in_v, other=0.0).to(tl.float32)
    G = tl.cumsum(tl.load(g + at_k, mask=in_k, other=0.0), 0)
    state = tl.load(states + (n * (NT + 1) + c) * K * V + at_state, mask=in_state, other=0.0)

    # Masked before exp: for a write after the read the exponent is positive.
    causal = t[:, None, None] >= t[None, :, None]
    decay = tl.exp(tl.where(causal, G[:, None, :] - G[None, :, :], float("-inf")))
    scores = tl.sum(Q[:, None, :] * X[None, :, :] * decay, 2)
    out = tl.dot(Q * tl.exp(G), state, input_precision="ieee") + tl.dot(scores, Y, input_precision="ieee")
    tl.store(o + at_v, scale * out, mask=in_v)


@triton.jit(do_not_specialize=["T", "NT"])
def gradients(
    q, k, v, g, do, states, dstates, dq, dk, dv, dg, scale, T, NT, K, V, BT: constexpr, BK: constexpr, BV: constexpr
):
    """Write dq, dk, dv and dg of chunk c of sequence n."""
    c, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, j, t = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    at_state, in_state = i[:, None] * V + j[None, :], (i[:, None] < K) & (j[None, :] < V)
    real = c * BT + t < T
    token = n * T + c * BT + t
    at_k, in_k = token[:, None] * K + i[None, :], real[:, None] & (i[None, :] < K)
    at_v, in_v = token[:, None] * V + j[None, :], real[:, None] & (j[None, :] < V)
    Q = tl.load(q + at_k, mask=in_k, other=0.0).to(tl.float32)
    X = tl.load(k + at_k, mask=in_k, other=0.0).to(tl.float32)
    Y = tl.load(v + at_v, mask=in_v, other=0.0).to(tl.float32)
    dO = tl.load(do + at_v, mask=in_v, other=0.0).to(tl.float32) * scale
    gates = tl.load(g + at_k, mask=in_k, other=0.0)
    G, end = tl.cumsum(gates, 0), tl.sum(gates, 0)
    at_state += (n * (NT + 1) + c) * K * V
    state = tl.load(states + at_state, mask=in_state, other=0.0)
    after = tl.load(states + at_state + K * V, mask=in_state, other=0.0)
    dafter = tl.load(dstates + at_state + K * V, mask=in_state, other=0.0)

    causal = t[:, None, None] >= t[None, :, None]
    decay = tl.exp(tl.where(causal, G[:, None, :] - G[None, :, :], float("-inf")))
    scores = tl.sum(Q[:, None, :] * X[None, :, :] * decay, 2)
    dscores = tl.dot(dO, tl.trans(Y), input_precision="ieee")[:, :, None] * decay
    to_end = tl.exp(end[None, :] - G)
    dQ = tl.dot(dO, tl.trans(state), input_precision="ieee") * tl.exp(G) + tl.sum(dscores * X[None, :, :], 1)
    dX = tl.dot(Y, tl.trans(dafter), input_precision="ieee") * to_end + tl.sum(dscores * Q[:, None, :], 0)
    dY = tl.dot(tl.trans(scores), dO, input_precision="ieee") + tl.dot(X * to_end, dafter, input_precision="ieee")
    tl.store(dq + at_k, dQ, mask=in_k)
    tl.store(dk + at_k, dX, mask=in_k)
    tl.store(dv + at_v, dY, mask=in_v)
    # A gate scales what was written before it and is read from it on: in this chunk, reads minus writes; beyond it, the state.
    flow = tl.cumsum(Q * dQ - X * dX, 0, reverse=True) + tl.sum(after * dafter, 1)[None, :]
    tl.store(dg + at_k, flow, mask=in_k)


class ChunkGLA(torch.autograd.Function):
    """Shapes: q, k, g [N, T, K]; v [N, T, V]; state [N, K, V]. Results are float32 and rounded outside."""

    @staticmethod
    def forward(ctx, q, k, v, g, state, scale):
        """Return o and the final state; every chunk's state is kept for the gradients."""
        N, T, K, V = *q.shape, v.shape[-1]
        NT = triton.cdiv(T, CHUNK)
        blocks = {"BT": CHUNK, "BK": max(16, triton.next_power_of_2(K)), "BV": max(16, triton.next_power_of_2(V))}
        states, o = state.new_empty(N, NT + 1, K, V), torch.empty_like(v, dtype=torch.float32)
        states[:, 0] = state
        scan[(N,)](k, v, g, states, 1.0, T, NT, K, V, BACK=False, **blocks)
        read[(NT, N)](q, k, v, g, states, o, scale, T, NT, K, V, **blocks)
        ctx.save_for_backward(q, k, v, g, states)
        ctx.scale, ctx.blocks = scale, blocks
        return o.to(v.dtype), states[:, NT].clone()

    @staticmethod
    def backward(ctx, do, dstate):
        """Return the gradients of forward's arguments."""
        q, k, v, g, states = ctx.saved_tensors
        N, T, K, V, NT = *q.shape, v.shape[-1], states.shape[1] - 1
        do, dstates = do.contiguous(), torch.empty_like(states)
        dstates[:, NT] = dstate
        scan[(N,)](q, do, g, dstates, ctx.scale, T, NT, K, V, BACK=True, **ctx.blocks)
        grads = [torch.empty_like(x, dtype=torch.float32) for x in (q, k, v, g)]
        gradients[(NT, N)](q, k, v, g, do, states, dstates, *grads, ctx.scale, T, NT, K, V, **ctx.blocks)
        return *(d.to(x.dtype) for d, x in zip(grads, (q, k, v, g), strict=True)), dstates[:, 0], None


@linverify.kernel("gla", form="chunkwise", backend="triton", claims={"fp32": "ieee"})
def my_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    """q, k, g [B, T, H, K]; v [B, T, H, V]; initial_state [B, H, K, V]; returns o [B, T, H, V] and the final state or None."""
    B, _, H, K, V = *q.shape, v.shape[-1]
    state = q.new_zeros(B, H, K, V, dtype=torch.float32) if initial_state is None else initial_state.float()
    q, k, v, g = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (q, k, v, g.float()))
    o, final = ChunkGLA.apply(q, k, v, g, state.flatten(0, 1), K**-0.5 if scale is None else scale)
    return o.unflatten(0, (B, H)).transpose(1, 2), final.unflatten(0, (B, H)) if output_final_state else None
