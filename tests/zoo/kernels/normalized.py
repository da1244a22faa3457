"""Normalised linear attention in chunks with phi = 1 + elu, its backward written by hand.

n_i = scale * S_i^T phi(q_i),  d_i = scale * z_i . phi(q_i) + eps,  o_i = n_i / d_i, with S and z the sums of phi(k_j) v_j^T and
phi(k_j) up to i. With e_i = -o_i . do_i the values of both gradients are [do_i, e_i] / d_i, against [v_j, 1].
"""

import torch
from pack import borders, chunk_table, rows
from torch import einsum
from torch.nn.functional import elu

CHUNK = 16
EPS = 1e-6


def phi(x):
    """1 + elu."""
    return elu(x) + 1


def phi_slope(x):
    """The derivative of phi."""
    return x.clamp(max=0).exp()


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] rows in, outputs out."""

    @staticmethod
    def forward(ctx, q, k, v, scale, ends):
        chunks = chunk_table(ends, CHUNK)
        fq, fk, one = phi(q), phi(k), torch.cat([v, torch.ones_like(v[..., :1])], -1)
        S = q.new_zeros(len(ends) - 1, *fk.shape[1:], one.shape[-1])
        o, below = torch.empty_like(v), torch.empty_like(v[..., 0])
        for n, i, j in chunks:
            A = einsum("ihk,jhk->hij", fq[i:j], fk[i:j]).tril()
            read = einsum("hij,jhv->ihv", A, one[i:j]) + einsum("ihk,hkv->ihv", fq[i:j], S[n])
            below[i:j] = scale * read[..., -1] + EPS
            o[i:j] = scale * read[..., :-1] / below[i:j, :, None]
            S[n] += einsum("chk,chv->hkv", fk[i:j], one[i:j])
        ctx.save_for_backward(q, k, one, o, below)
        ctx.scale, ctx.chunks, ctx.ends = scale, chunks, ends
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, one, o, below = ctx.saved_tensors
        fq, fk, grad = phi(q), phi(k), torch.cat([do, -(o * do).sum(-1, keepdim=True)], -1)
        grad = ctx.scale * grad / below[..., None]
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(do)
        S = q.new_zeros(len(ctx.ends) - 1, *fk.shape[1:], one.shape[-1])
        dS = torch.zeros_like(S)
        for n, i, j in ctx.chunks:
            dA = einsum("ihv,jhv->hij", grad[i:j], one[i:j]).tril()
            dq[i:j] = einsum("hij,jhk->ihk", dA, fk[i:j]) + einsum("ihv,hkv->ihk", grad[i:j], S[n])
            S[n] += einsum("chk,chv->hkv", fk[i:j], one[i:j])
        for n, i, j in reversed(ctx.chunks):
            A = einsum("ihk,jhk->hij", fq[i:j], fk[i:j]).tril()
            dA = einsum("ihv,jhv->hij", grad[i:j], one[i:j]).tril()
            dk[i:j] = einsum("hij,ihk->jhk", dA, fq[i:j]) + einsum("jhv,hkv->jhk", one[i:j], dS[n])
            own = einsum("hij,ihv->jhv", A, grad[i:j]) + einsum("jhk,hkv->jhv", fk[i:j], dS[n])
            dv[i:j] = own[..., :-1]
            dS[n] += einsum("chk,chv->hkv", fq[i:j], grad[i:j])
        return dq * phi_slope(q), dk * phi_slope(k), dv, None, None


def normalized_linear_attention(q, k, v, scale=None, cu_seqlens=None):
    """Sums run over the sequence."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o = Attend.apply(*rows(q, k, v), scale, borders(q, cu_seqlens))
    return o.unflatten(0, q.shape[:2]).to(v.dtype)
