"""RWKV-7 token by token, its adjoint written by hand: the low-rank term reads the undecayed state.

S_t = diag(exp(w_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T,  o_t = scale * S_t^T q_t
"""

import torch
from pack import borders, first_states, rows, wide


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, w, k, v, a, b, h0, scale, ends):
        o, final, past = torch.empty_like(v), h0.clone(), []
        for n in range(len(ends) - 1):
            S = h0[n]
            for t in range(ends[n], ends[n + 1]):
                past.append(S)
                read = (a[t, :, :, None] * S).sum(1)
                S = w[t].exp()[..., None] * S + b[t, :, :, None] * read[:, None] + k[t, :, :, None] * v[t, :, None]
                o[t] = scale * (q[t, :, :, None] * S).sum(1)
            past.append(S)
            final[n] = S
        ctx.save_for_backward(q, w, k, v, a, b, *past)
        ctx.scale, ctx.ends = scale, ends
        return o, final

    @staticmethod
    def backward(ctx, do, dht):
        q, w, k, v, a, b, *past = ctx.saved_tensors
        dq, dw, dk, dv, da, db = (torch.empty_like(x) for x in (q, w, k, v, a, b))
        dh0, ends = dht.clone(), ctx.ends
        for n in range(len(ends) - 1):
            dS = dht[n]
            for t in reversed(range(ends[n], ends[n + 1])):
                grad, before, after = ctx.scale * do[t], past[t + n], past[t + n + 1]
                dq[t] = (after * grad[:, None]).sum(-1)
                dS = dS + q[t, :, :, None] * grad[:, None]
                read = (a[t, :, :, None] * before).sum(1)
                db[t] = (dS * read[:, None]).sum(-1)
                dread = (dS * b[t, :, :, None]).sum(1)
                da[t] = (before * dread[:, None]).sum(-1)
                dk[t] = (dS * v[t, :, None]).sum(-1)
                dv[t] = (dS * k[t, :, :, None]).sum(1)
                dw[t] = w[t].exp() * (before * dS).sum(-1)
                dS = w[t].exp()[..., None] * dS + a[t, :, :, None] * dread[:, None]
            dh0[n] = dS
        return dq, dw, dk, dv, da, db, dh0, None, None


def rwkv7(q, w, k, v, a, b, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any log gate w, removal a and write b, all [B, T, H, K]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = borders(q, cu_seqlens)
    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])
    o, ht = Attend.apply(*rows(q, w, k, v, a, b), h0, scale, ends)
    return o.unflatten(0, (B, T)).to(v.dtype), ht if output_final_state else None
