"""The delta rule token by token in Triton: a forward kernel, and two backward kernels that run backward and forward.

S_t = S_{t-1} + k_t e_t^T,  e_t = beta_t (v_t - S_{t-1}^T k_t),  o_t = scale * S_t^T q_t
"""

import torch
import triton
import triton.language as tl

BV = 16


@triton.jit
def forward_kernel(q, k, v, beta, o, u, h0, ht, ends, scale, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """o, what is left of the values after the removal, and the final state."""
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
        b_v = tl.load(v + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        b_beta = tl.load(beta + at).to(tl.float32)
        b_u = b_v - tl.sum(S * b_k[:, None], 0)
        S += b_k[:, None] * (b_beta * b_u)[None, :]
        tl.store(u + at * V + ov, b_u, mask=mv)
        tl.store(o + at * V + ov, tl.sum(b_q[:, None] * S, 0), mask=mv)
    tl.store(ht + state, S, mask=m)


@triton.jit
def key_kernel(q, k, beta, u, do, dk, dv, dbeta, dht, dh0, ends, scale, P, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """Parts of dk and dbeta, dv and the gradient of the initial state, from the last token to the first."""
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
        b_u = tl.load(u + at * V + ov, mask=mv, other=0.0)
        b_do = tl.load(do + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        b_beta = tl.load(beta + at).to(tl.float32)
        dS += b_q[:, None] * b_do[None, :]
        b_de = tl.sum(dS * b_k[:, None], 0)
        tl.store(dk + (i_v * P * H + at) * K + ok, tl.sum(dS * (b_beta * b_u)[None, :], 1), mask=mk)
        tl.store(dbeta + i_v * P * H + at, tl.sum(b_de * b_u, 0))
        tl.store(dv + at * V + ov, b_beta * b_de, mask=mv)
        dS -= b_k[:, None] * (b_beta * b_de)[None, :]
    tl.store(dh0 + state, dS, mask=m)


@triton.jit
def query_kernel(k, beta, u, do, dv, dq, dk, h0, ends, scale, P, H, K, V, BK: tl.constexpr, BV: tl.constexpr):
    """dq, and what dk lacks, from the first token to the last."""
    i_v, i_nh = tl.program_id(0), tl.program_id(1)
    n, h = i_nh // H, i_nh % H
    begin, end = tl.load(ends + n), tl.load(ends + n + 1)
    ok, ov = tl.arange(0, BK), i_v * BV + tl.arange(0, BV)
    mk, mv = ok < K, ov < V
    S = tl.load(h0 + i_nh * K * V + ok[:, None] * V + ov[None, :], mask=mk[:, None] & mv[None, :], other=0.0)
    for t in range(begin, end):
        at = t * H + h
        part = (i_v * P * H + at) * K + ok
        b_k = tl.load(k + at * K + ok, mask=mk, other=0.0).to(tl.float32)
        b_u = tl.load(u + at * V + ov, mask=mv, other=0.0)
        b_do = tl.load(do + at * V + ov, mask=mv, other=0.0).to(tl.float32)
        b_dv = tl.load(dv + at * V + ov, mask=mv, other=0.0)
        b_beta = tl.load(beta + at).to(tl.float32)
        b_dk = tl.load(dk + part, mask=mk, other=0.0) - tl.sum(S * b_dv[None, :], 1)
        tl.store(dk + part, b_dk, mask=mk)
        S += b_k[:, None] * (b_beta * b_u)[None, :]
        tl.store(dq + part, tl.sum(S * b_do[None, :], 1) * scale, mask=mk)


class Attend(torch.autograd.Function):
    """The kernels: [B, T, H, .] in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, beta, h0, scale, ends):
        q, k, v, beta = (x.contiguous() for x in (q, k, v, beta))
        _, _, H, K = q.shape
        V = v.shape[-1]
        o, u, ht = torch.empty_like(v), torch.empty_like(v, dtype=torch.float32), torch.empty_like(h0)
        grid, BK = (triton.cdiv(V, BV), (len(ends) - 1) * H), triton.next_power_of_2(K)
        forward_kernel[grid](q, k, v, beta, o, u, h0, ht, ends, scale, H, K, V, BK=BK, BV=BV)
        ctx.save_for_backward(q, k, beta, u, h0, ends)
        ctx.scale = scale
        return o, ht

    @staticmethod
    def backward(ctx, do, dht):
        q, k, beta, u, h0, ends = ctx.saved_tensors
        B, T, H, K = q.shape
        V, N, P = u.shape[-1], len(ends) - 1, B * T
        NV, BK = triton.cdiv(V, BV), triton.next_power_of_2(K)
        dq, dk = (u.new_empty(NV, B, T, H, K) for _ in range(2))
        dv, dbeta, dh0 = torch.empty_like(u), u.new_empty(NV, B, T, H), torch.empty_like(h0)
        do, dht, sizes = do.contiguous(), dht.contiguous(), {"BK": BK, "BV": BV}
        key_kernel[(NV, N * H)](q, k, beta, u, do, dk, dv, dbeta, dht, dh0, ends, ctx.scale, P, H, K, V, **sizes)
        query_kernel[(NV, N * H)](k, beta, u, do, dv, dq, dk, h0, ends, ctx.scale, P, H, K, V, **sizes)
        dq, dk, dbeta = (x.sum(0) for x in (dq, dk, dbeta))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(do.dtype), dbeta.to(beta.dtype), dh0, None, None


def delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any write strength [B, T, H]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = T * torch.arange(B + 1) if cu_seqlens is None else cu_seqlens.long()
    ends = ends.to(q.device)
    h0 = q.new_zeros(len(ends) - 1, H, K, v.shape[-1], dtype=torch.float32) if initial_state is None else initial_state
    o, ht = Attend.apply(q, k, v, beta, h0.float().contiguous(), scale, ends)
    return o, ht if output_final_state else None
