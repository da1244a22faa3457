"""The delta rule with a gate for each key channel, token by token, its adjoint written by hand.

P_t = diag(exp(g_t)) S_{t-1},  S_t = P_t + beta_t k_t (v_t - P_t^T k_t)^T,  o_t = scale * S_t^T q_t
"""

import torch
from pack import borders, first_states, rows, wide


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, h0, scale, ends):
        o, final, past = torch.empty_like(v), h0.clone(), []
        for n in range(len(ends) - 1):
            S = h0[n]
            for t in range(ends[n], ends[n + 1]):
                past.append(S)
                P = g[t].exp()[..., None] * S
                error = v[t] - (k[t, :, :, None] * P).sum(1)
                S = P + (beta[t, :, None] * k[t])[..., None] * error[:, None]
                o[t] = scale * (q[t, :, :, None] * S).sum(1)
            final[n] = S
        ctx.save_for_backward(q, k, v, g, beta, *past)
        ctx.scale, ctx.ends = scale, ends
        return o, final

    @staticmethod
    def backward(ctx, do, dht):
        q, k, v, g, beta, *past = ctx.saved_tensors
        dq, dk, dv, dg, dbeta = (torch.empty_like(x) for x in (q, k, v, g, beta))
        dh0, ends = dht.clone(), ctx.ends
        for n in range(len(ends) - 1):
            dS = dht[n]
            for t in reversed(range(ends[n], ends[n + 1])):
                grad, key, b = ctx.scale * do[t], k[t, :, :, None], beta[t, :, None]
                P = g[t].exp()[..., None] * past[t]
                error = v[t] - (key * P).sum(1)
                S = P + b[..., None] * key * error[:, None]
                dq[t] = (S * grad[:, None]).sum(-1)
                dS = dS + q[t, :, :, None] * grad[:, None]
                written = (key * dS).sum(1)
                dbeta[t] = (written * error).sum(-1)
                dv[t] = b * written
                dP = dS - key * dv[t, :, None]
                dk[t] = b * (dS * error[:, None]).sum(-1) - (P * dv[t, :, None]).sum(-1)
                dg[t] = (P * dP).sum(-1)
                dS = g[t].exp()[..., None] * dP
            dh0[n] = dS
        return dq, dk, dv, dg, dbeta, dh0, None, None


def kda(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any log gate [B, T, H, K] and write strength [B, T, H]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = borders(q, cu_seqlens)
    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])
    o, ht = Attend.apply(*rows(q, k, v, g, beta), h0, scale, ends)
    return o.unflatten(0, (B, T)).to(v.dtype), ht if output_final_state else None
