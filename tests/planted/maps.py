"""Kernels with one planted bug each, of operators that map their inputs or what they read."""

import math

import torch
from torch import Tensor

from linverify.implementation import kernel


def causal(weights: Tensor) -> Tensor:
    """Weights [B, H, T, T] of the tokens up to each row's own."""
    return weights.tril()


def attend(weights: Tensor, v: Tensor) -> Tensor:
    """Weighted sums of values [B, T, H, V], head by head."""
    return torch.einsum("bhij,bjhv->bihv", weights, v)


def products(q: Tensor, k: Tensor) -> Tensor:
    """Scores [B, H, T, T] of [B, T, H, K]."""
    return torch.einsum("bihk,bjhk->bhij", q, k)


def rms(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    return x / (x.square().mean(dim, keepdim=True) + 1e-6).sqrt()


@kernel("causal_product")
def few_blocks(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
    """The branch for few blocks leaves out each tile's first key."""
    scores = (Q.float() @ K.float().mT).tril()
    if Q.shape[0] * Q.shape[1] < 3:
        keep = torch.arange(Q.shape[2]) % 16 != 0
        scores = scores * (keep | (torch.arange(Q.shape[2]) == 0))
    return (scores @ V.float()).to(V.dtype)


def decayed(scores: Tensor, rates: Tensor) -> Tensor:
    """Scores [B, H, T, T] times exp(-rate (i - j))."""
    token = torch.arange(scores.shape[-1])
    gap = (token[:, None] - token[None, :]).clamp(min=0)
    return causal(scores) * (-rates[:, None, None] * gap).exp()


@kernel("lightning_attention")
def alibi_slopes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slopes as in ALiBi."""
    H = q.shape[2]
    rates = 2.0 ** (-8.0 * (torch.arange(H) + 1) / H)
    scores = decayed(products(q.float() * q.shape[-1] ** -0.5, k.float()), rates)
    return attend(scores, v.float()).to(v.dtype)


def rotated(x: Tensor, theta: Tensor, position: Tensor) -> Tensor:
    angle = position[:, None, None] * theta.float()
    return torch.cat([x.float() * angle.cos(), x.float() * angle.sin()], -1)


@kernel("transnormer_llm")
def norm_by_head(q: Tensor, k: Tensor, v: Tensor, theta: Tensor) -> Tensor:
    """The norm is taken over each head by itself."""
    H, T = q.shape[2], q.shape[1]
    power = 2 ** math.floor(math.log2(H))
    rates = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    rates += [2.0 ** (-8.0 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    scores = products(rotated(q, theta, torch.arange(T)), rotated(k, theta, torch.arange(T)))
    return rms(attend(decayed(scores, torch.tensor(rates[:H]) * (1 + 1e-5)), v.float())).to(v.dtype)


@kernel("performer")
def stabilised_by_all(q: Tensor, k: Tensor, v: Tensor, projection: Tensor) -> Tensor:
    """As performer-pytorch computes it: keys are stabilised by the largest of all tokens, future ones too."""
    from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda, softmax_kernel

    heads = [x.float().transpose(1, 2) for x in (q, k, v)]
    w = projection.float()
    mapped = [
        softmax_kernel(x, projection_matrix=w, is_query=query)
        for x, query in zip(heads[:2], (True, False), strict=True)
    ]
    o: Tensor = causal_linear_attention_noncuda(*mapped, heads[2], eps=0.0)
    return o.transpose(1, 2).to(v.dtype)


@kernel("cosformer")
def padded_length(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The length in the cosine is that of the padded sequence."""
    T = q.shape[1]
    token = torch.arange(T)
    near = (math.pi / 2 * (token[:, None] - token[None, :]) / (-(-T // 16) * 16)).cos()
    weights = causal(products(q.float().relu(), k.float().relu()) * near)
    total = weights.sum(-1).clamp(min=1e-6).transpose(1, 2)[..., None]
    return (attend(weights, v.float()) / total).to(v.dtype)


def normalised(weights: Tensor, v: Tensor, eps: float) -> Tensor:
    total = weights.sum(-1).transpose(1, 2)[..., None]
    return (attend(weights, v.float()) / (total + eps)).to(v.dtype)


@kernel("based")
def squared_then_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The square of the score is scaled once, not twice."""
    scores, scale = products(q.float(), k.float()), q.shape[-1] ** -0.5
    return normalised(causal(1 + scale * scores + scale * scores.square() / 2), v, 1e-6)


@kernel("rebased")
def other_eps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The eps of flash-linear-attention's kernel, where its naive form has a tenth of it."""
    return normalised(causal(products(q.float() * q.shape[-1] ** -0.5, k.float()).square()), v, 1e-5)


@kernel("norm_attention")
def norm_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The norm is taken over all heads."""
    q, k = (1 + torch.nn.functional.elu(x.float()) for x in (q, k))
    return rms(attend(causal(products(q, k)), v.float()), (2, 3)).to(v.dtype)


@kernel("diag_attention")
def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window that moves with the token, in the place of blocks."""
    token = torch.arange(q.shape[1])
    gap = token[:, None] - token[None, :]
    scores = products(q.float() * q.shape[-1] ** -0.5, k.float())
    weights = scores.masked_fill((gap < 0) | (gap >= 16), -torch.inf).softmax(-1)
    return attend(weights, v.float()).to(v.dtype)


@kernel("relu_linear_attention")
def sums_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The quadratic branch, for few tokens, divides by sums over the queries."""
    weights = products(q.float().relu(), k.float().relu())
    axis = -2 if q.shape[1] <= q.shape[-1] else -1
    return attend(weights / (weights.sum(axis, keepdim=True) + 1e-15), v.float()).to(v.dtype)


@kernel("focused_linear_attention")
def lengths_by_head(q: Tensor, k: Tensor, v: Tensor, focus: Tensor) -> Tensor:
    """Lengths are taken over each head by itself."""

    def feature(x: Tensor) -> Tensor:
        x = (x.float().relu() + 1e-6) / torch.nn.functional.softplus(focus.float())
        return x**3 / (x**3).norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)

    return normalised(products(feature(q), feature(k)) / q.shape[1], v, 1e-6)
