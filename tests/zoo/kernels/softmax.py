"""Causal softmax attention in tiles with an online maximum, its backward from the log-sum-exp written by hand.

o_i = sum_j p_ij v_j,  p_ij = exp(scale * q_i . k_j - lse_i) for j <= i; groups of query heads share keys and values.
dv_j = sum_i p_ij do_i,  ds_ij = p_ij (do_i . v_j - do_i . o_i),  dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i.
"""

from itertools import pairwise

import torch
from pack import borders, rows
from torch import einsum

TILE = 16


def tiles(begin, end):
    """Borders of the tiles of a sequence."""
    return [(i, min(i + TILE, end)) for i in range(begin, end, TILE)]


def scores(q, k, i, j, scale):
    """Scaled scores of the rows from token i on and the columns from token j on, minus infinity for later columns."""
    s = scale * einsum("ihk,jhk->hij", q, k)
    hidden = (j + torch.arange(len(k))) > (i + torch.arange(len(q)))[:, None]
    return s.masked_fill(hidden, -torch.inf)


class Attend(torch.autograd.Function):
    """The kernel: [P, H, .] queries and [P, G, .] keys and values in, outputs out."""

    @staticmethod
    def forward(ctx, q, k, v, scale, ends):
        r = q.shape[1] // k.shape[1]
        o, lse = q.new_empty(*q.shape[:2], v.shape[-1]), torch.empty_like(q[..., 0])
        for begin, end in pairwise(ends):
            for i, i_end in tiles(begin, end):
                m = q.new_full((q.shape[1], i_end - i), -torch.inf)
                total, read = torch.zeros_like(m), q.new_zeros(*m.shape, v.shape[-1])
                for j, j_end in tiles(begin, i_end):
                    keys, values = (x[j:j_end].repeat_interleave(r, 1) for x in (k, v))
                    s = scores(q[i:i_end], keys, i, j, scale)
                    new = torch.maximum(m, s.amax(-1))
                    p, old = (s - new[..., None]).exp(), (m - new).exp()
                    total = old * total + p.sum(-1)
                    read = old[..., None] * read + einsum("hij,jhv->hiv", p, values)
                    m = new
                o[i:i_end] = (read / total[..., None]).movedim(0, 1)
                lse[i:i_end] = (m + total.log()).mT
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.scale, ctx.ends, ctx.r = scale, ends, r
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, o, lse = ctx.saved_tensors
        scale, r = ctx.scale, ctx.r
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        delta = (o * do).sum(-1)
        for begin, end in pairwise(ctx.ends):
            for i, i_end in tiles(begin, end):
                for j, j_end in tiles(begin, i_end):
                    keys, values = (x[j:j_end].repeat_interleave(r, 1) for x in (k, v))
                    p = (scores(q[i:i_end], keys, i, j, scale) - lse[i:i_end].mT[..., None]).exp()
                    dp = einsum("ihv,jhv->hij", do[i:i_end], values)
                    ds = p * (dp - delta[i:i_end].mT[..., None])
                    dq[i:i_end] += scale * einsum("hij,jhk->ihk", ds, keys)
                    own = scale * einsum("hij,ihk->jhk", ds, q[i:i_end])
                    dk[j:j_end] += own.unflatten(1, (-1, r)).sum(2)
                    own = einsum("hij,ihv->jhv", p, do[i:i_end])
                    dv[j:j_end] += own.unflatten(1, (-1, r)).sum(2)
        return dq, dk, dv, None, None


def softmax_attention(q, k, v, scale=None, cu_seqlens=None):
    """Heads of q are a multiple of those of k and v."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o = Attend.apply(*rows(q, k, v), scale, borders(q, cu_seqlens))
    return o.unflatten(0, q.shape[:2]).to(v.dtype)
