"""The delta rule with a scalar gate in chunks (the WY form), its backward written by hand.

S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T,  o_t = scale * S_t^T q_t.  Inside a chunk with entering
state S, what is written is U = (1 + L)^{-1} beta (V - exp(G) K S),  L_ij = beta_i (k_i . k_j) exp(G_i - G_j) for j < i.
"""

import torch
from pack import borders, chunk_table, first_states, later, rows, wide
from torch import einsum

CHUNK = 16


def decays(G):
    """exp(G_i - G_j) for j <= i, else 0: [H, C, C]."""
    gap = G.mT[:, :, None] - G.mT[:, None, :]
    return gap.masked_fill(later(len(G)), -torch.inf).exp()


def products(k, beta, D):
    """The strictly lower products L."""
    L = beta.mT[..., None] * einsum("ihk,jhk->hij", k, k) * D
    return L.tril(-1)


def solve(L, right):
    """(1 + L)^{-1} right for [H, C, C] and [C, H, V]."""
    return torch.linalg.solve_triangular(L, right.movedim(0, 1), upper=False, unitriangular=True).movedim(1, 0)


def solve_transposed(L, right):
    """(1 + L)^{-T} right."""
    return torch.linalg.solve_triangular(L.mT, right.movedim(0, 1), upper=True, unitriangular=True).movedim(1, 0)


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, h0, scale, ends):
        chunks = chunk_table(ends, CHUNK)
        S, o, G, u = h0.clone(), torch.empty_like(v), torch.empty_like(g), torch.empty_like(v)
        h = q.new_zeros(len(chunks), *h0.shape[1:])
        for c, (n, i, j) in enumerate(chunks):
            G[i:j] = g[i:j].cumsum(0)
            h[c] = S[n]
            D, into = decays(G[i:j]), G[i:j].exp()[..., None]
            error = v[i:j] - into * einsum("ihk,hkv->ihv", k[i:j], S[n])
            u[i:j] = solve(products(k[i:j], beta[i:j], D), beta[i:j, :, None] * error)
            A = einsum("ihk,jhk->hij", q[i:j], k[i:j]) * D
            inter = into * einsum("ihk,hkv->ihv", q[i:j], S[n])
            o[i:j] = scale * (inter + einsum("hij,jhv->ihv", A, u[i:j]))
            left = (G[j - 1] - G[i:j]).exp()[..., None]
            S[n] = G[j - 1].exp()[:, None, None] * S[n] + einsum("chk,chv->hkv", k[i:j] * left, u[i:j])
        ctx.save_for_backward(q, k, v, G, beta, u, h)
        ctx.scale, ctx.chunks = scale, chunks
        return o, S

    @staticmethod
    def backward(ctx, do, dht):
        dS = dht.clone()
        q, k, v, G, beta, u, h = ctx.saved_tensors
        dq, dk, dv, dg, dbeta = (torch.empty_like(x) for x in (q, k, v, G, beta))
        for c, (n, i, j) in reversed(list(enumerate(ctx.chunks))):
            qc, kc, uc, b = q[i:j], k[i:j], u[i:j], beta[i:j, :, None]
            D, grad = decays(G[i:j]), ctx.scale * do[i:j]
            into, left = G[i:j].exp()[..., None], (G[j - 1] - G[i:j]).exp()[..., None]
            L = products(kc, beta[i:j], D)
            QK = einsum("ihk,jhk->hij", qc, kc) * D
            du = einsum("hij,ihv->jhv", QK, grad) + einsum("jhk,hkv->jhv", kc * left, dS[n])
            dR = solve_transposed(L, du)
            dL = -einsum("ihv,jhv->hij", dR, uc).tril(-1)
            dA = einsum("ihv,jhv->hij", grad, uc) * D
            M = dL * beta[i:j].mT[..., None] * D
            from_state = into * einsum("ihk,hkv->ihv", kc, h[c])
            dq_state = into * einsum("ihv,hkv->ihk", grad, h[c])
            dk_end = left * einsum("jhv,hkv->jhk", uc, dS[n])
            dk_read = -into * b * einsum("ihv,hkv->ihk", dR, h[c])
            dq[i:j] = einsum("hij,jhk->ihk", dA, kc) + dq_state
            dk[i:j] = einsum("hij,ihk->jhk", dA, qc) + dk_end + dk_read
            dk[i:j] += einsum("hij,jhk->ihk", M, kc) + einsum("hij,ihk->jhk", M, kc)
            dv[i:j] = b * dR
            KK = einsum("ihk,jhk->hij", kc, kc) * D
            dbeta[i:j] = (dR * (v[i:j] - from_state)).sum(-1) + (dL * KK).sum(-1).mT
            W = dA * einsum("ihk,jhk->hij", qc, kc) + dL * L
            dG = (W.sum(-1) - W.sum(-2)).mT + (qc * dq_state).sum(-1) - (b * from_state * dR).sum(-1)
            moved = (kc * dk_end).sum(-1)
            dG -= moved
            dG[-1] += moved.sum(0) + G[j - 1].exp() * (h[c] * dS[n]).sum((-1, -2))
            dg[i:j] = dG.flip(0).cumsum(0).flip(0)
            dS[n] = G[j - 1].exp()[:, None, None] * dS[n] + einsum("chk,chv->hkv", qc * into, grad)
            dS[n] -= einsum("chk,chv->hkv", kc * into * b, dR)
        return dq, dk, dv, dg, dbeta, dS, None, None


def gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any scalar log gate and write strength [B, T, H]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = borders(q, cu_seqlens)
    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])
    o, ht = Attend.apply(*rows(q, k, v, g, beta), h0, scale, ends)
    return o.unflatten(0, (B, T)).to(v.dtype), ht if output_final_state else None


def delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """No gate."""
    g = wide(beta).new_zeros(beta.shape)
    return gated_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state, cu_seqlens)
