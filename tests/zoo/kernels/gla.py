"""Linear attention with a log gate for each key channel: chunks of 32, sub-chunks of 8, a backward written by hand.

S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = scale * S_t^T q_t.  Scores between sub-chunks split the exponent at a token
between both, so that neither half is positive; inside one the difference is formed for every pair.
"""

import torch
from pack import borders, chunk_table, first_states, later, rows, wide
from torch import einsum

CHUNK, SUB = 32, 8


def pair_decays(G):
    """exp(G_i - G_j) for j <= i, else 0: [C, C, H, K]."""
    gap = G[:, None] - G[None]
    return gap.masked_fill(later(len(G))[..., None, None], -torch.inf).exp()


def intra_scores(q, k, G):
    """sum_d q_id k_jd exp(G_id - G_jd) for j <= i: [H, C, C]."""
    A = q.new_zeros(q.shape[1], len(q), len(q))
    for a in range(0, len(q), SUB):
        b = min(a + SUB, len(q))
        anchor = G[a]
        row, column = q[a:b] * (G[a:b] - anchor).exp(), k[:a] * (anchor - G[:a]).exp()
        A[:, a:b, :a] = einsum("ihk,jhk->hij", row, column)
        A[:, a:b, a:b] = einsum("ihk,jhk,ijhk->hij", q[a:b], k[a:b], pair_decays(G[a:b]))
    return A


def intra_gradients(dA, q, k, G):
    """What the scores' gradients [H, C, C] give to queries and keys."""
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    for a in range(0, len(q), SUB):
        b = min(a + SUB, len(q))
        D, own = pair_decays(G[a:b]), dA[:, a:b, a:b]
        column = k[:a] * (G[a] - G[:a]).exp()
        dq[a:b] = (G[a:b] - G[a]).exp() * einsum("hij,jhk->ihk", dA[:, a:b, :a], column)
        dq[a:b] += einsum("hij,ijhk,jhk->ihk", own, D, k[a:b])
        row = q[b:] * (G[b:] - G[b - 1]).exp()
        dk[a:b] = (G[b - 1] - G[a:b]).exp() * einsum("hij,ihk->jhk", dA[:, b:, a:b], row)
        dk[a:b] += einsum("hij,ijhk,ihk->jhk", own, D, q[a:b])
    return dq, dk


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, g, h0, scale, ends):
        chunks = chunk_table(ends, CHUNK)
        S, o, G = h0.clone(), torch.empty_like(v), torch.empty_like(g)
        h = q.new_zeros(len(chunks), *h0.shape[1:])
        for c, (n, i, j) in enumerate(chunks):
            G[i:j] = g[i:j].cumsum(0)
            h[c] = S[n]
            A = intra_scores(q[i:j], k[i:j], G[i:j])
            inter = einsum("ihk,hkv->ihv", q[i:j] * G[i:j].exp(), S[n])
            o[i:j] = scale * (inter + einsum("hij,jhv->ihv", A, v[i:j]))
            left = (G[j - 1] - G[i:j]).exp()
            S[n] = G[j - 1].exp()[..., None] * S[n] + einsum("chk,chv->hkv", k[i:j] * left, v[i:j])
        ctx.save_for_backward(q, k, v, G, h)
        ctx.scale, ctx.chunks = scale, chunks
        return o, S

    @staticmethod
    def backward(ctx, do, dht):
        q, k, v, G, h = ctx.saved_tensors
        dq, dk, dv, dg = (torch.empty_like(x) for x in (q, k, v, G))
        dS = dht.clone()
        for c, (n, i, j) in reversed(list(enumerate(ctx.chunks))):
            into, left = G[i:j].exp(), (G[j - 1] - G[i:j]).exp()
            grad = ctx.scale * do[i:j]
            A = intra_scores(q[i:j], k[i:j], G[i:j])
            dA = einsum("ihv,jhv->hij", grad, v[i:j]).masked_fill(later(j - i), 0)
            dq[i:j], dk[i:j] = intra_gradients(dA, q[i:j], k[i:j], G[i:j])
            dq[i:j] += into * einsum("ihv,hkv->ihk", grad, h[c])
            dk[i:j] += left * einsum("jhv,hkv->jhk", v[i:j], dS[n])
            dv[i:j] = einsum("hij,ihv->jhv", A, grad) + einsum("jhk,hkv->jhv", k[i:j] * left, dS[n])
            dG = q[i:j] * dq[i:j] - k[i:j] * dk[i:j]
            end = G[j - 1].exp()[..., None] * h[c] + einsum("chk,chv->hkv", k[i:j] * left, v[i:j])
            dG[-1] += (end * dS[n]).sum(-1)
            dg[i:j] = dG.flip(0).cumsum(0).flip(0)
            dS[n] = G[j - 1].exp()[..., None] * dS[n] + einsum("chk,chv->hkv", q[i:j] * into, grad)
        return dq, dk, dv, dg, dS, None, None


def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any log gate [B, T, H, K]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = borders(q, cu_seqlens)
    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])
    o, ht = Attend.apply(*rows(q, k, v, g), h0, scale, ends)
    return o.unflatten(0, (B, T)).to(v.dtype), ht if output_final_state else None


def hgrn2(q, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Keys are what the gate leaves: 1 - exp(g)."""
    return gla(q, -wide(g).expm1(), v, g, scale, initial_state, output_final_state, cu_seqlens)
