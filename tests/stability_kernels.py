"""Normalised linear attention over 1 + elu with an explicit backward pass, right once and with one planted fault each."""

import torch
from torch import Tensor

EPS = 1e-6


class Right(torch.autograd.Function):
    """o = (s v) / (s 1 + eps), s = scale phi(q) phi(k)^T, causal; each step is a method that a fault may replace."""

    @staticmethod
    def divided(total: Tensor) -> Tensor:
        return total + EPS

    @staticmethod
    def of_scores(away: Tensor, s: Tensor) -> Tensor:
        return away / (s.sum(-1, keepdim=True) + EPS)

    @staticmethod
    def of_query(dq: Tensor, scale: float) -> Tensor:
        return dq * scale

    @staticmethod
    def of_key(dk: Tensor) -> Tensor:
        return dk

    @staticmethod
    def of_value(dv: Tensor) -> Tensor:
        return dv

    @staticmethod
    def seen(T: int) -> Tensor:
        return torch.ones(T, T, dtype=torch.bool).tril()

    @classmethod
    def _run(cls, ctx, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        fq, fk = phi(q), phi(k)
        seen = cls.seen(q.shape[-2])
        s = (fq @ fk.mT * scale).masked_fill(~seen, 0)
        o = (s @ v) / cls.divided(s.sum(-1, keepdim=True))
        ctx.save_for_backward(q, k, v, s, o, fq, fk)
        ctx.scale, ctx.seen = scale, seen
        return o

    @classmethod
    def _back(cls, ctx, do: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, s, o, fq, fk = ctx.saved_tensors
        total = s.sum(-1, keepdim=True)
        away = (do @ v.mT - (do * o).sum(-1, keepdim=True)).masked_fill(~ctx.seen, 0)
        ds = cls.of_scores(away, s)
        dq = cls.of_query(ds @ fk, ctx.scale) * slope(q)
        dk = cls.of_key(ds.mT @ fq * ctx.scale) * slope(k)
        return dq, dk, cls.of_value((s / cls.divided(total)).mT @ do), None

    @classmethod
    def forward(cls, ctx, q, k, v, scale):
        return cls._run(ctx, q, k, v, scale)

    @classmethod
    def backward(cls, ctx, do):
        return cls._back(ctx, do)


def phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def slope(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), x.clamp(max=0).exp())


class QueryUnscaled(Right):
    """The query's gradient leaves out the scale."""

    @staticmethod
    def of_query(dq, scale):
        return dq


class KeyScaled(Right):
    """The key's gradient has a factor too much."""

    @staticmethod
    def of_key(dk):
        return 1.5 * dk


class Dominated(Right):
    """A branch for rows of which one token has more than half doubles their derivatives."""

    @staticmethod
    def of_scores(away, s):
        total = s.sum(-1, keepdim=True)
        return away / (total + EPS) * (1 + (s.amax(-1, keepdim=True) > 0.5 * total))


class ValueShrunk(Right):
    """The backward pass of the values is not the forward pass transposed."""

    @staticmethod
    def of_value(dv):
        return dv * (1 - 2.0**-10)


class EpsDropped(Right):
    """Neither pass adds eps."""

    @staticmethod
    def divided(total):
        return total

    @staticmethod
    def of_scores(away, s):
        return away / s.sum(-1, keepdim=True)


class EpsEarly(Right):
    """The backward pass adds a thousand times eps: gradients stop growing too early."""

    @staticmethod
    def of_scores(away, s):
        return away / (s.sum(-1, keepdim=True) + 1000 * EPS)


class DividedTwice(Right):
    """The derivative by a score is divided by the square of the sum on its way to the keys."""

    @classmethod
    def _back(cls, ctx, do):
        dq, dk, dv, _ = super()._back(ctx, do)
        total = ctx.saved_tensors[3][..., -1:, :].sum(-1, keepdim=True)
        return dq, dk / (total + EPS), dv, None


class Window(Right):
    """Tokens further back than 56 are not seen, which nobody asked for."""

    @staticmethod
    def seen(T):
        return torch.ones(T, T, dtype=torch.bool).tril().triu(-55)


def _called(function: type[Right], q, k, v, scale):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    o = function.apply(*(x.to(wide).transpose(1, 2) for x in (q, k, v)), scale)
    return o.transpose(1, 2).to(v.dtype)


def right(q, k, v, scale=None):
    return _called(Right, q, k, v, scale)


def query_unscaled(q, k, v, scale=None):
    return _called(QueryUnscaled, q, k, v, scale)


def key_scaled(q, k, v, scale=None):
    return _called(KeyScaled, q, k, v, scale)


def dominated(q, k, v, scale=None):
    return _called(Dominated, q, k, v, scale)


def value_shrunk(q, k, v, scale=None):
    return _called(ValueShrunk, q, k, v, scale)


def eps_dropped(q, k, v, scale=None):
    return _called(EpsDropped, q, k, v, scale)


def eps_early(q, k, v, scale=None):
    return _called(EpsEarly, q, k, v, scale)


def divided_twice(q, k, v, scale=None):
    return _called(DividedTwice, q, k, v, scale)


def window(q, k, v, scale=None):
    return _called(Window, q, k, v, scale)


def divides_in_half(q, k, v, scale=None):
    """The quotient is formed in the inputs' own format: its derivative, 1 / eps, is beyond float16."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    fq, fk, fv = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    s = (phi(fq) @ phi(fk).mT * scale).tril()
    o = (s @ fv).to(v.dtype) / (s.sum(-1, keepdim=True).to(v.dtype) + EPS)
    return o.transpose(1, 2)


def norm_right(q, k, v, scale=None):
    """NormAttention as its equations say."""
    return _normed(q, k, v, scale, EPS)


def norm_without_eps(q, k, v, scale=None):
    """The norm's eps is left out."""
    return _normed(q, k, v, scale, 0.0)


def _normed(q, k, v, scale, eps):
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    fq, fk, fv = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    m = (phi(fq) @ phi(fk).mT * (1.0 if scale is None else scale)).tril() @ fv
    return (m / (m.square().mean(-1, keepdim=True) + eps).sqrt()).transpose(1, 2).to(v.dtype)
