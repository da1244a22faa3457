"""Linear attention with a scalar gate in chunks of 16 in Triton: one program runs along a sequence, forward or backward.

o_i = scale * (exp(G_i) S^T q_i + sum_{j <= i} (q_i . k_j) exp(G_i - G_j) v_j), G the sum of the gates in the chunk.
"""

import torch
import triton
import triton.language as tl

BT = 16


@triton.jit
def forward_kernel(q, k, v, g, o, h0, ht, ends, scale, H, K, V, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """o and the final state."""
    i_nh = tl.program_id(0)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov, oc = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    mk, mv = ok < K, ov < V
    state = i_nh * K * V + ok[:, None] * V + ov[None, :]
    S = tl.load(h0 + state, mask=mk[:, None] & mv[None, :], other=0.0)
    for i in range(begin, end, BT):
        t = i + oc
        mt = t < end
        at = t * H + h
        b_q = (
            tl.load(q + at[:, None] * K + ok[None, :], mask=mt[:, None] & mk[None, :], other=0.0).to(tl.float32) * scale
        )
        b_k = tl.load(k + at[:, None] * K + ok[None, :], mask=mt[:, None] & mk[None, :], other=0.0).to(tl.float32)
        b_v = tl.load(v + at[:, None] * V + ov[None, :], mask=mt[:, None] & mv[None, :], other=0.0).to(tl.float32)
        b_g = tl.load(g + at, mask=mt, other=0.0).to(tl.float32)
        G = tl.cumsum(b_g, 0)
        total = tl.sum(b_g, 0)
        causal = oc[:, None] >= oc[None, :]
        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)
        A = tl.dot(b_q, tl.trans(b_k), allow_tf32=False) * D
        b_o = tl.dot(b_q * tl.exp(G)[:, None], S, allow_tf32=False) + tl.dot(A, b_v, allow_tf32=False)
        tl.store(o + at[:, None] * V + ov[None, :], b_o, mask=mt[:, None] & mv[None, :])
        left = tl.exp(total - G)
        S = S * tl.exp(total) + tl.dot(tl.trans(b_k * left[:, None]), b_v, allow_tf32=False)
    tl.store(ht + state, S, mask=mk[:, None] & mv[None, :])


@triton.jit
def query_kernel(k, v, g, do, dq, h0, ends, scale, H, K, V, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """dq."""
    i_nh = tl.program_id(0)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov, oc = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    mk, mv = ok < K, ov < V
    S = tl.load(h0 + i_nh * K * V + ok[:, None] * V + ov[None, :], mask=mk[:, None] & mv[None, :], other=0.0)
    for i in range(begin, end, BT):
        t = i + oc
        mt = t < end
        at = t * H + h
        b_k = tl.load(k + at[:, None] * K + ok[None, :], mask=mt[:, None] & mk[None, :], other=0.0).to(tl.float32)
        b_v = tl.load(v + at[:, None] * V + ov[None, :], mask=mt[:, None] & mv[None, :], other=0.0).to(tl.float32)
        b_do = tl.load(do + at[:, None] * V + ov[None, :], mask=mt[:, None] & mv[None, :], other=0.0).to(tl.float32)
        b_g = tl.load(g + at, mask=mt, other=0.0).to(tl.float32)
        G = tl.cumsum(b_g, 0)
        total = tl.sum(b_g, 0)
        causal = oc[:, None] >= oc[None, :]
        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)
        dA = tl.dot(b_do, tl.trans(b_v), allow_tf32=False) * D
        b_dq = tl.dot(dA, b_k, allow_tf32=False) + tl.dot(b_do, tl.trans(S), allow_tf32=False) * tl.exp(G)[:, None]
        tl.store(dq + at[:, None] * K + ok[None, :], b_dq * scale, mask=mt[:, None] & mk[None, :])
        left = tl.exp(total - G)
        S = S * tl.exp(total) + tl.dot(tl.trans(b_k * left[:, None]), b_v, allow_tf32=False)


@triton.jit
def key_kernel(
    q, k, v, g, do, dk, dv, dht, dh0, ends, scale, H, K, V, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr
):
    """dk, dv and the gradient of the initial state."""
    i_nh = tl.program_id(0)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov, oc = tl.arange(0, BK), tl.arange(0, BV), tl.arange(0, BT)
    mk, mv = ok < K, ov < V
    state = i_nh * K * V + ok[:, None] * V + ov[None, :]
    dS = tl.load(dht + state, mask=mk[:, None] & mv[None, :], other=0.0)
    for c in range(tl.cdiv(end - begin, BT) - 1, -1, -1):
        t = begin + c * BT + oc
        mt = t < end
        at = t * H + h
        b_q = (
            tl.load(q + at[:, None] * K + ok[None, :], mask=mt[:, None] & mk[None, :], other=0.0).to(tl.float32) * scale
        )
        b_k = tl.load(k + at[:, None] * K + ok[None, :], mask=mt[:, None] & mk[None, :], other=0.0).to(tl.float32)
        b_v = tl.load(v + at[:, None] * V + ov[None, :], mask=mt[:, None] & mv[None, :], other=0.0).to(tl.float32)
        b_do = tl.load(do + at[:, None] * V + ov[None, :], mask=mt[:, None] & mv[None, :], other=0.0).to(tl.float32)
        b_g = tl.load(g + at, mask=mt, other=0.0).to(tl.float32)
        G = tl.cumsum(b_g, 0)
        total = tl.sum(b_g, 0)
        causal = oc[:, None] >= oc[None, :]
        D = tl.where(causal, tl.exp(tl.where(causal, G[:, None] - G[None, :], 0.0)), 0.0)
        left = tl.exp(total - G)[:, None]
        dA = tl.dot(b_do, tl.trans(b_v), allow_tf32=False) * D
        A = tl.dot(b_q, tl.trans(b_k), allow_tf32=False) * D
        b_dk = tl.dot(tl.trans(dA), b_q, allow_tf32=False) + tl.dot(b_v, tl.trans(dS), allow_tf32=False) * left
        b_dv = tl.dot(tl.trans(A), b_do, allow_tf32=False) + tl.dot(b_k * left, dS, allow_tf32=False)
        tl.store(dk + at[:, None] * K + ok[None, :], b_dk, mask=mt[:, None] & mk[None, :])
        tl.store(dv + at[:, None] * V + ov[None, :], b_dv, mask=mt[:, None] & mv[None, :])
        dS = dS * tl.exp(total) + tl.dot(tl.trans(b_q * tl.exp(G)[:, None]), b_do, allow_tf32=False)
    tl.store(dh0 + state, dS, mask=mk[:, None] & mv[None, :])


class Attend(torch.autograd.Function):
    """The kernels: [B, T, H, .] in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, g, h0, scale, ends):
        q, k, v, g = (x.contiguous() for x in (q, k, v, g))
        _, _, H, K = q.shape
        V = v.shape[-1]
        o, ht = torch.empty_like(v), torch.empty_like(h0)
        sizes = {"BT": BT, "BK": max(16, triton.next_power_of_2(K)), "BV": max(16, triton.next_power_of_2(V))}
        forward_kernel[((len(ends) - 1) * H,)](q, k, v, g, o, h0, ht, ends, scale, H, K, V, **sizes)
        ctx.save_for_backward(q, k, v, g, h0, ht, ends)
        ctx.scale, ctx.sizes = scale, sizes
        return o, ht

    @staticmethod
    def backward(ctx, do, dht):
        q, k, v, g, h0, ht, ends = ctx.saved_tensors
        do, dht = do.contiguous(), dht.contiguous()
        B, T, H, K = q.shape
        V, grid = v.shape[-1], ((len(ends) - 1) * H,)
        dq, dk = (torch.empty_like(x, dtype=torch.float32) for x in (q, k))
        dv, dh0 = torch.empty_like(v), torch.empty_like(h0)
        query_kernel[grid](k, v, g, do, dq, h0, ends, ctx.scale, H, K, V, **ctx.sizes)
        key_kernel[grid](q, k, v, g, do, dk, dv, dht, dh0, ends, ctx.scale, H, K, V, **ctx.sizes)
        terms = ((q.float() * dq).sum(-1) - (k.float() * dk).sum(-1)).flatten(0, 1)
        end = (ht * dht).sum((-1, -2))
        dg = torch.empty_like(terms)
        for n, (i, j) in enumerate(zip(ends.tolist(), ends.tolist()[1:])):  # noqa: B905
            dg[i:j] = terms[i:j].flip(0).cumsum(0).flip(0) + end[n]
        return dq.to(q.dtype), dk.to(k.dtype), dv, dg.unflatten(0, (B, T)).to(g.dtype), dh0, None, None


def simple_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any scalar log gate [B, T, H]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = T * torch.arange(B + 1) if cu_seqlens is None else cu_seqlens.long()
    ends = ends.to(q.device)
    h0 = q.new_zeros(len(ends) - 1, H, K, v.shape[-1], dtype=torch.float32) if initial_state is None else initial_state
    o, ht = Attend.apply(q, k, v, g, h0.float().contiguous(), scale, ends)
    return o, ht if output_final_state else None
