"""RWKV-6 token by token, its adjoint written by hand: the query reads the past undecayed and the newest token with a bonus.

o_t = scale * (S_{t-1} + (u * k_t) v_t^T)^T q_t,  S_t = diag(exp(w_t)) S_{t-1} + k_t v_t^T
"""

import torch
from pack import borders, first_states, rows, wide


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, w, u, h0, scale, ends):
        o, final, past = torch.empty_like(v), h0.clone(), []
        for n in range(len(ends) - 1):
            S = h0[n]
            for t in range(ends[n], ends[n + 1]):
                past.append(S)
                write = k[t, :, :, None] * v[t, :, None]
                o[t] = scale * (q[t, :, :, None] * (S + u[..., None] * write)).sum(1)
                S = w[t].exp()[..., None] * S + write
            final[n] = S
        ctx.save_for_backward(q, k, v, w, u, *past)
        ctx.scale, ctx.ends = scale, ends
        return o, final

    @staticmethod
    def backward(ctx, do, dht):
        q, k, v, w, u, *past = ctx.saved_tensors
        dq, dk, dv, dw, du = (torch.zeros_like(x) for x in (q, k, v, w, u))
        dh0, ends = dht.clone(), ctx.ends
        for n in range(len(ends) - 1):
            dS = dht[n]
            for t in reversed(range(ends[n], ends[n + 1])):
                grad = ctx.scale * do[t]
                bonus = (v[t] * grad).sum(-1, keepdim=True)
                dq[t] = (past[t] * grad[:, None]).sum(-1) + u * k[t] * bonus
                dk[t] = u * q[t] * bonus + (dS * v[t, :, None]).sum(-1)
                dv[t] = (q[t] * u * k[t]).sum(-1, keepdim=True) * grad + (dS * k[t, :, :, None]).sum(1)
                du += q[t] * k[t] * bonus
                dw[t] = w[t].exp() * (past[t] * dS).sum(-1)
                dS = w[t].exp()[..., None] * dS + q[t, :, :, None] * grad[:, None]
            dh0[n] = dS
        return dq, dk, dv, dw, du, dh0, None, None


def rwkv6(q, k, v, w, u, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any log gate w [B, T, H, K] and bonus u [H, K]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = borders(q, cu_seqlens)
    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])
    o, ht = Attend.apply(*rows(q, k, v, w), wide(u), h0, scale, ends)
    return o.unflatten(0, (B, T)).to(v.dtype), ht if output_final_state else None
