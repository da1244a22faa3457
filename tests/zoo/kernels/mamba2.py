"""Mamba-2 in chunks (state-space duality): chunk sums, chunk states, states passed on, chunk scans; autograd behind them.

S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T,  o_t = scale * S_t^T C_t; heads share the B and C of their group.
"""

import torch
from pack import borders, chunk_table, first_states, later, rows, wide
from torch import einsum

CHUNK = 16


def chunk_scan(x, dt, a, B, C, S):
    """Outputs of a chunk and the state after it; a: log decays [C, H]."""
    G = a.cumsum(0)
    gap = G.mT[:, :, None] - G.mT[:, None, :]
    D = gap.masked_fill(later(len(G)), -torch.inf).exp()
    A = einsum("ihk,jhk->hij", C, B) * D
    value = dt[..., None] * x
    o = einsum("hij,jhv->ihv", A, value) + einsum("ihk,hkv->ihv", C * G.exp()[..., None], S)
    left = (G[-1] - G).exp()
    S = G[-1].exp()[:, None, None] * S + einsum("chk,chv->hkv", B * left[..., None], value)
    return o, S


def mamba2(x, dt, A, B, C, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """x [B, T, H, P], dt [B, T, H] > 0, A [H] < 0, B and C [B, T, G, N]."""
    shape, (H, V), (G, K) = x.shape[:2], x.shape[2:], B.shape[2:]
    scale = 1.0 if scale is None else scale
    ends = borders(x, cu_seqlens)
    dtype = x.dtype
    states = list(first_states(initial_state, wide(x), len(ends) - 1, H, K, V).unbind(0))
    x, dt, B, C = rows(x, dt, B, C)
    B, C = (y.repeat_interleave(H // G, 1) for y in (B, C))
    a = dt * wide(A)
    parts = []
    for n, i, j in chunk_table(ends, CHUNK):
        o, states[n] = chunk_scan(x[i:j], dt[i:j], a[i:j], B[i:j], C[i:j], states[n])
        parts.append(scale * o)
    o = torch.cat(parts).unflatten(0, shape)
    return o.to(dtype), torch.stack(states) if output_final_state else None
