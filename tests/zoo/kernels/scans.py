"""Recurrences without a matrix for state, token by token with autograd behind them: HGRN and RWKV-4."""

from itertools import pairwise

import torch
from pack import borders, first_states, rows, wide


def hgrn(x, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """h_t = exp(g_t) h_{t-1} + x_t,  o_t = scale * h_t; all [B, T, V]."""
    scale = 1.0 if scale is None else scale
    ends, shape, dtype = borders(x, cu_seqlens), x.shape[:2], x.dtype
    states = list(first_states(initial_state, wide(x), len(ends) - 1, x.shape[-1]).unbind(0))
    x, g = rows(x, g)
    out = []
    for n, (begin, end) in enumerate(pairwise(ends)):
        for t in range(begin, end):
            states[n] = g[t].exp() * states[n] + x[t]
            out.append(scale * states[n])
    return torch.stack(out).unflatten(0, shape).to(dtype), torch.stack(states) if output_final_state else None


def rwkv4(w, u, k, v, scale=None, cu_seqlens=None):
    """Weighted means with a running maximum; w and u [V], k and v [B, T, V]; the decay is exp(-exp(w))."""
    scale = 1.0 if scale is None else scale
    ends, shape, dtype = borders(k, cu_seqlens), k.shape[:2], v.dtype
    step, u = wide(w).exp(), wide(u)
    k, v = rows(k, v)
    out = []
    for begin, end in pairwise(ends):
        a, b, m = torch.zeros_like(u), torch.zeros_like(u), torch.full_like(u, -1e38)
        for t in range(begin, end):
            top = torch.maximum(m, u + k[t]).detach()
            old, new = (m - top).exp(), (u + k[t] - top).exp()
            out.append(scale * (old * a + new * v[t]) / (old * b + new))
            top = torch.maximum(m - step, k[t]).detach()
            old, new = (m - step - top).exp(), (k[t] - top).exp()
            a, b, m = old * a + new * v[t], old * b + new, top
    return torch.stack(out).unflatten(0, shape).to(dtype)
