"""Linear attention with a scalar log gate in chunks, split as published chunk kernels are, its backward written by hand.

S_t = exp(g_t) S_{t-1} + k_t v_t^T,  o_t = scale * S_t^T q_t.  With G the sum of the gates in a chunk up to a token,
o_i = scale * (exp(G_i) S^T q_i + sum_{j <= i} (q_i . k_j) exp(G_i - G_j) v_j), and the gate's gradient is the reverse sum
of q_i . dq_i - k_i . dk_i, plus <S_end, dS_end> at the last token of a chunk.
"""

import torch
from pack import borders, chunk_table, first_states, later, rows, wide
from torch import einsum

CHUNK = 16


def local_sums(g, chunks):
    """Sums of the gates within each chunk."""
    G = torch.empty_like(g)
    for _, i, j in chunks:
        G[i:j] = g[i:j].cumsum(0)
    return G


def reverse_sums(dG, chunks):
    """From gradients of the sums to those of the gates."""
    dg = torch.empty_like(dG)
    for _, i, j in chunks:
        dg[i:j] = dG[i:j].flip(0).cumsum(0).flip(0)
    return dg


def decays(G):
    """exp(G_i - G_j) for j <= i, else 0: [H, C, C]; masked first, as what lies above the diagonal may overflow."""
    gap = G.mT[:, :, None] - G.mT[:, None, :]
    return gap.masked_fill(later(len(G)), -torch.inf).exp()


def forward_states(k, v, G, h0, chunks):
    """States before each chunk, and after the last."""
    S = h0.clone()
    h = k.new_zeros(len(chunks), *h0.shape[1:])
    for c, (n, i, j) in enumerate(chunks):
        h[c] = S[n]
        left = (G[j - 1] - G[i:j]).exp()
        S[n] = G[j - 1].exp()[:, None, None] * S[n] + einsum("chk,chv->hkv", k[i:j] * left[..., None], v[i:j])
    return h, S


def forward_outputs(q, k, v, G, h, scale, chunks):
    """Outputs of each chunk from its own tokens and the state before it."""
    o = torch.empty_like(v)
    for c, (_, i, j) in enumerate(chunks):
        A = einsum("ihk,jhk->hij", q[i:j], k[i:j]) * decays(G[i:j])
        inter = einsum("ihk,hkv->ihv", q[i:j] * G[i:j].exp()[..., None], h[c])
        o[i:j] = scale * (inter + einsum("hij,jhv->ihv", A, v[i:j]))
    return o


def backward_states(q, G, do, dht, scale, chunks):
    """Gradients of the states after each chunk, and before the first."""
    dS = dht.clone()
    dh = q.new_zeros(len(chunks), *dht.shape[1:])
    for c, (n, i, j) in reversed(list(enumerate(chunks))):
        dh[c] = dS[n]
        read = q[i:j] * G[i:j].exp()[..., None]
        dS[n] = G[j - 1].exp()[:, None, None] * dS[n] + scale * einsum("chk,chv->hkv", read, do[i:j])
    return dh, dS


def backward_inputs(q, k, v, G, h, dh, do, scale, chunks):
    """Gradients of queries, keys, values and gate sums."""
    dq, dk, dv, dG = (torch.empty_like(x) for x in (q, k, v, G))
    for c, (_, i, j) in enumerate(chunks):
        D = decays(G[i:j])
        into, left = G[i:j].exp()[..., None], (G[j - 1] - G[i:j]).exp()[..., None]
        A = scale * einsum("ihk,jhk->hij", q[i:j], k[i:j]) * D
        dA = scale * einsum("ihv,jhv->hij", do[i:j], v[i:j]) * D
        dq[i:j] = einsum("hij,jhk->ihk", dA, k[i:j]) + scale * into * einsum("ihv,hkv->ihk", do[i:j], h[c])
        dk[i:j] = einsum("hij,ihk->jhk", dA, q[i:j]) + left * einsum("jhv,hkv->jhk", v[i:j], dh[c])
        dv[i:j] = einsum("hij,ihv->jhv", A, do[i:j]) + left * einsum("jhk,hkv->jhv", k[i:j], dh[c])
        dG[i:j] = (q[i:j] * dq[i:j]).sum(-1) - (k[i:j] * dk[i:j]).sum(-1)
        end = G[j - 1].exp()[:, None, None] * h[c] + einsum("chk,chv->hkv", k[i:j] * left, v[i:j])
        dG[j - 1] += (end * dh[c]).sum((-1, -2))
    return dq, dk, dv, dG


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs and final states out."""

    @staticmethod
    def forward(ctx, q, k, v, g, h0, scale, ends):
        chunks = chunk_table(ends, CHUNK)
        G = local_sums(g, chunks)
        h, ht = forward_states(k, v, G, h0, chunks)
        o = forward_outputs(q, k, v, G, h, scale, chunks)
        ctx.save_for_backward(q, k, v, G, h)
        ctx.scale, ctx.chunks = scale, chunks
        return o, ht

    @staticmethod
    def backward(ctx, do, dht):
        q, k, v, G, h = ctx.saved_tensors
        chunks, scale = ctx.chunks, ctx.scale
        dh, dh0 = backward_states(q, G, do, dht, scale, chunks)
        dq, dk, dv, dG = backward_inputs(q, k, v, G, h, dh, do, scale, chunks)
        dg = reverse_sums(dG, chunks)
        return dq, dk, dv, dg, dh0, None, None


def simple_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Any scalar log gate [B, T, H]."""
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    ends = borders(q, cu_seqlens)
    h0 = first_states(initial_state, wide(v), len(ends) - 1, H, K, v.shape[-1])
    o, ht = Attend.apply(*rows(q, k, v, g), h0, scale, ends)
    return o.unflatten(0, (B, T)).to(v.dtype), ht if output_final_state else None


def linear_attention(q, k, v, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """No gate."""
    g = wide(q).new_zeros(q.shape[:3])
    return simple_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens)


def retention(q, k, v, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    """A fixed gate for each head."""
    gamma = 1 - torch.exp2(-5 - torch.arange(q.shape[2], dtype=wide(q).dtype))
    g = gamma.log().expand(q.shape[:3]).contiguous()
    return simple_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens)
