"""Gated linear attention token by token in Triton: a forward kernel, and two backward kernels that run forward and backward.

S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = scale * S_t^T q_t; the gate's gradient is the sum over later tokens of
q . dq - k . dk, plus <S_T, dS_T>.  Values are split over programs of BV columns, whose parts of dq and dk are added up after.
"""

import torch
import triton
import triton.language as tl

BV = 16


@triton.jit
def forward_kernel(q, k, v, g, o, h0, ht, ends, scale, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """o and the final state."""
    i_v, i_nh = tl.program_id(0), tl.program_id(1)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    mk, mv = ok < K, ov < V
    state = i_nh * K * V + ok[:, None] * V + ov[None, :]
    m = mk[:, None] & mv[None, :]
    S = tl.load(h0 + state, mask=m, other=0.0)
    for t in range(begin, end):
        at = t * H + h
        b_q = tl.load(q + at * K + ok, mask=mk, other=0.0).to(tl.float32) * scale
        b_k = tl.load(k + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_g = tl.load(g + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        S = S * tl.exp(b_g)[:, None] + b_k[:, None] * b_v[None, :]
        tl.store(o + at * V + ov, tl.sum(b_q[:, None] * S, 0), mask=mv)
    tl.store(ht + state, S, mask=m)


@triton.jit
def query_kernel(k, v, g, do, dq, h0, ends, scale, P, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """dq, a part for each block of values."""
    i_v, i_nh = tl.program_id(0), tl.program_id(1)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    mk, mv = ok < K, ov < V
    m = mk[:, None] & mv[None, :]
    S = tl.load(h0 + i_nh * K * V + ok[:, None] * V + ov[None, :], mask=m, other=0.0)
    for t in range(begin, end):
        at = t * H + h
        b_k = tl.load(k + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_g = tl.load(g + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        b_do = tl.load(do + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        S = S * tl.exp(b_g)[:, None] + b_k[:, None] * b_v[None, :]
        tl.store(dq + (i_v * P * H + at) * K + ok, tl.sum(S * b_do[None, :], 1) * scale, mask=mk)


@triton.jit
def key_kernel(q, k, v, g, do, dk, dv, dht, dh0, ends, scale, P, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """dk, a part for each block of values, dv and the gradient of the initial state."""
    i_v, i_nh = tl.program_id(0), tl.program_id(1)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    mk, mv = ok < K, ov < V
    state = i_nh * K * V + ok[:, None] * V + ov[None, :]
    m = mk[:, None] & mv[None, :]
    dS = tl.load(dht + state, mask=m, other=0.0)
    for i in range(begin, end):
        at = (begin + end - 1 - i) * H + h
        b_q = tl.load(q + at * K + ok, mask=mk, other=0.0).to(tl.float32) * scale
        b_k = tl.load(k + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_g = tl.load(g + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        b_do = tl.load(do + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        dS += b_q[:, None] * b_do[None, :]
        tl.store(dk + (i_v * P * H + at) * K + ok, tl.sum(dS * b_v[None, :], 1), mask=mk)
        tl.store(dv + at * V + ov, tl.sum(dS * b_k[:, None], 0), mask=mv)
        dS = dS * tl.exp(b_g)[:, None]
    tl.store(dh0 + state, dS, mask=m)


class Attend(torch.autograd.Function):
    """The kernels: [B, T, H, .] in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, g, h0, scale, ends):
        q, k, v, g = (x.contiguous() for x in (q, k, v, g))
        _, _, H, K = q.shape
        V = v.shape[-1]
        o, ht = torch.empty_like(v), torch.empty_like(h0)
        grid = (triton.cdiv(V, BV), (len(ends) - 1) * H)
        BK = triton.next_power_of_2(K)
        forward_kernel[grid](q, k, v, g, o, h0, ht, ends, scale, H, K, V, BK=BK, BV=BV)
        ctx.save_for_backward(q, k, v, g, h0, ht, ends)
        ctx.scale = scale
        return o, ht

    @staticmethod
    def backward(ctx, do, dht):
        q, k, v, g, h0, ht, ends = ctx.saved_tensors
        do, dht = do.contiguous(), dht.contiguous()
        B, T, H, K = q.shape
        V, N, P = v.shape[-1], len(ends) - 1, B * T
        NV, BK = triton.cdiv(V, BV), triton.next_power_of_2(K)
        dq, dk = (q.new_empty(NV, B, T, H, K, dtype=torch.float32) for _ in range(2))
        dv, dh0 = torch.empty_like(v), torch.empty_like(h0)
        query_kernel[(NV, N * H)](k, v, g, do, dq, h0, ends, ctx.scale, P, H, K, V, BK=BK, BV=BV)
        key_kernel[(NV, N * H)](q, k, v, g, do, dk, dv, dht, dh0, ends, ctx.scale, P, H, K, V, BK=BK, BV=BV)
        dq, dk = dq.sum(0), dk.sum(0)
        terms = (q.float() * dq - k.float() * dk).flatten(0, 1)
        end = (ht * dht).sum(-1)
        dg = torch.empty_like(terms)
        for n, (i, j) in enumerate(zip(ends.tolist(), ends.tolist()[1:])):  # noqa: B905
            dg[i:j] = terms[i:j].flip(0).cumsum(0).flip(0) + end[n]
        return dq.to(q.dtype), dk.to(k.dtype), dv, dg.unflatten(0, (B, T)).to(g.dtype), dh0, None, None


def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any log gate [B, T, H, K]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = T * torch.arange(B + 1) if cu_seqlens is None else cu_seqlens.long()
    ends = ends.to(q.device)
    h0 = q.new_zeros(len(ends) - 1, H, K, v.shape[-1], dtype=torch.float32) if initial_state is None else initial_state
    o, ht = Attend.apply(q, k, v, g, h0.float().contiguous(), scale, ends)
    return o, ht if output_final_state else None
