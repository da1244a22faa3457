"""Kernels of attention with scores and of attention over all tokens, each with one mistake; tests/test_score_mistakes.py
checks them. The correct ones wrap modules of flash-pytorch.
"""

from math import pi

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, softmax

TILE = 16


def heads_first(*x: Tensor) -> list[Tensor]:
    return [t.transpose(1, 2).float() for t in x]


def as_given(o: Tensor, like: Tensor) -> Tensor:
    return o.transpose(1, 2).to(like.dtype)


def window_too_wide(q, k, v, window=0):
    """Sees one token more than the window has."""
    T, (q_, k_, v_) = q.shape[1], heads_first(q, k, v)
    k_, v_ = (x.repeat_interleave(q_.shape[1] // x.shape[1], 1) for x in (k_, v_))
    place = torch.arange(T)
    gap = place[:, None] - place[None, :]
    scores = (q_ @ k_.mT * q.shape[-1] ** -0.5).masked_fill((gap < 0) | (gap > window), -torch.inf)
    return as_given(softmax(scores, -1) @ v_, v)


def maximum_not_carried(q, k, v):
    """An online softmax that does not rescale what it summed before the maximum rose."""
    q_, k_, v_ = heads_first(q, k, v)
    k_, v_ = (x.repeat_interleave(q_.shape[1] // x.shape[1], 1) for x in (k_, v_))
    top, total, read = torch.full_like(q_[..., :1], -torch.inf), 0, 0
    for first in range(0, q.shape[1], TILE):
        scores = q_ @ k_[:, :, first : first + TILE].mT * q.shape[-1] ** -0.5
        top = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = (scores - top).exp()
        total, read = total + weights.sum(-1, keepdim=True), read + weights @ v_[:, :, first : first + TILE]
    return as_given(read / total, v)


def keys_over_features(q, k, v):
    """The softmax of a key runs over its features, as that of a query."""
    q_, k_, v_ = heads_first(q, k, v)
    return as_given(softmax(q_, -1) @ (softmax(k_, -1).mT @ v_), v)


def scale_once(q, k, v, agent):
    """The scale belongs to both softmaxes, and is used in one."""
    q_, k_, v_, a = heads_first(q, k, v, agent)
    return as_given(softmax(q_ @ a.mT * q.shape[-1] ** -0.5, -1) @ (softmax(a @ k_.mT, -1) @ v_), v)


def padded_rows_count(q, k, v, E, F):
    """The rank is filled up to a multiple of 64 with zero rows, which take weight."""
    q_, k_, v_ = heads_first(q, k, v)
    E_, F_ = (pad(x.float(), (0, 0, 0, -x.shape[0] % 64)) for x in (E, F))
    return as_given(softmax(q_ @ (E_ @ k_).mT * q.shape[-1] ** -0.5, -1) @ (F_ @ v_), v)


def norms_of_halves(q, k, v):
    """The norm of each half of the features, as if there were two heads."""
    q_, k_ = (torch.cat([normalize(x, dim=-1) for x in y.float().chunk(2, -1)], -1) for y in (q, k))
    return (q_ * (k_ * v.float()).sum(1, keepdim=True)).to(v.dtype)


def half_of_all(q, k, v):
    """Adds half the sum of all values, as the kernel's expansion has it and the authors' code does not."""
    q_, k_, v_ = heads_first(q, k, v)
    o = 0.5 * v_.sum(2, keepdim=True) + normalize(q_, dim=-1) @ (normalize(k_, dim=-1).mT @ v_) / pi
    return as_given(normalize(o, dim=-1), v)


def mask_after_weights(q, k, v, u):
    """The causal mask goes into the scores when the weights were made: flash-pytorch had this (commit 0853186)."""
    scores = q.float() @ k.float().mT / q.shape[1]
    weights = scores.relu() ** 2
    scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), 0.0)
    return (u.float() * (weights @ v.float())).to(v.dtype)


class _Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu() ** 2

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x.relu()


def slope_without_two(q, k, v, u):
    """The backward pass takes relu(s) for the slope of relu(s)^2."""
    weights = _Squared.apply(q.float() @ k.float().mT / q.shape[1])
    return (u.float() * (weights @ v.float())).to(v.dtype)


def _mixed(x: dict[str, Tensor], chunk: int, *, own: bool, last: bool) -> Tensor:
    T, outs = x["v"].shape[1], []
    x = {n: t.float() for n, t in x.items()}
    state = 0
    for start in range(0, T, chunk):
        part = {n: t[:, start : start + chunk] for n, t in x.items()}
        now = part["lin_k"].mT @ part["v"] / chunk
        length = part["v"].shape[1] if last else chunk
        inside = ((part["quad_q"] @ part["quad_k"].mT / length).relu() ** 2).tril()
        seen = state + now if own else state
        read = part["lin_q"] @ seen if torch.is_tensor(seen) else 0
        outs.append(part["u"] * (inside @ part["v"] + read))
        state = state + now
    return torch.cat(outs, 1)


def own_chunk_twice(quad_q, quad_k, lin_q, lin_k, v, u, chunk_size=256):
    """The running sum over chunks is inclusive: a token reads the later ones of its own chunk."""
    x = {"quad_q": quad_q, "quad_k": quad_k, "lin_q": lin_q, "lin_k": lin_k, "v": v, "u": u}
    return _mixed(x, chunk_size, own=True, last=False).to(v.dtype)


def last_chunk_by_its_length(quad_q, quad_k, lin_q, lin_k, v, u, chunk_size=256):
    """Scores of a ragged last chunk are divided by its length, not by that of a chunk."""
    x = {"quad_q": quad_q, "quad_k": quad_k, "lin_q": lin_q, "lin_k": lin_k, "v": v, "u": u}
    return _mixed(x, chunk_size, own=False, last=True).to(v.dtype)


def own_term_twice(q, k, v, scale=None):
    """Both directions as two causal runs: each token's own term counts twice."""
    q_, k_, v_ = heads_first(q, k, v)
    scores = q_ @ k_.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return as_given((scores.tril() + scores.triu()) @ v_, v)


class _Part(nn.Module):
    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.start : self.stop]


class _Split(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(self.count, -1)


def gau_of_flash_pytorch(q, k, v, u, causal=False):
    """The module as published, its projections replaced by cuts."""
    from flash_pytorch import GAU

    K, V = q.shape[-1], v.shape[-1]
    module = GAU(dim=16, causal=causal, add_residual=False)
    module.norm, module.to_hidden, module.to_qk = nn.Identity(), _Part(0, 2 * V), _Part(2 * V, 2 * V + 2 * K)
    module.offsetscale, module.to_out = _Split(2), nn.Identity()
    nn.init.zeros_(module.rel_pos_bias.relative_attention_bias.weight)
    return module(torch.cat([v, u, q, k], -1).float()).to(v.dtype)
