"""What the planted kernels share: correct forms of gated linear attention, and a decorator that gives them a signature.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,    o_t = scale * S_t^T q_t

Two forms: token by token, and in chunks. Both compute in float32 and get their gradients from autograd.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

Run = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps q (scaled), k, v, g [B, T, H, .] and the state [B, H, K, V] to o and the state after the last token."""

CHUNK = 16


@dataclass
class Arguments:
    """The arguments of a call."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    scale: float | None
    initial_state: Tensor | None
    output_final_state: bool
    cu_seqlens: Tensor | None

    def with_(self, **changes: object) -> "Arguments":
        return replace(self, **changes)


def stepwise(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token."""
    o = []
    for t in range(q.shape[1]):
        state = g[:, t].exp().unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        o.append((q[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(o, 1), state


def one_chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One chunk."""
    mask = torch.ones(q.shape[1], q.shape[1]).tril()
    total = g.cumsum(1)
    gap = total.unsqueeze(2) - total.unsqueeze(1)
    # Above the diagonal the exponent is positive and may overflow, so the mask comes first.
    decay = gap.masked_fill(mask[None, :, :, None, None] == 0, 0).exp()
    scores = torch.einsum("bihk,bjhk,bijhk->bhij", q, k, decay) * mask
    o = torch.einsum("bhij,bjhv->bihv", scores, v) + torch.einsum("bihk,bhkv->bihv", q * total.exp(), state)
    rest = (total[:, -1:] - total).exp()
    state = total[:, -1].exp().unsqueeze(-1) * state + torch.einsum("bjhk,bjhv->bhkv", k * rest, v)
    return o, state


def chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, *, size: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Chunk by chunk."""
    o = []
    for start in range(0, q.shape[1], size):
        part = slice(start, start + size)
        now, state = one_chunk(q[:, part], k[:, part], v[:, part], g[:, part], state)
        o.append(now)
    return torch.cat(o, 1), state


def call(a: Arguments, run: Run = stepwise) -> tuple[Tensor, Tensor | None]:
    """A whole call: scale, dtypes, initial state and packed sequences."""
    scale = a.q.shape[-1] ** -0.5 if a.scale is None else a.scale
    q, k, v, g = a.q.float() * scale, a.k.float(), a.v.float(), a.g.float()
    ends = [0, a.q.shape[1]] if a.cu_seqlens is None else a.cu_seqlens.tolist()
    count = a.q.shape[0] if a.cu_seqlens is None else len(ends) - 1
    shape = (count, *q.shape[2:], v.shape[-1])
    initial = torch.zeros(shape) if a.initial_state is None else a.initial_state.float()
    if a.cu_seqlens is None:
        o, state = run(q, k, v, g, initial)
    else:
        parts = []
        for n, (start, stop) in enumerate(pairwise(ends)):
            own = initial[n : n + 1]
            inputs = (x[:, start:stop] for x in (q, k, v, g))
            parts.append(run(*inputs, own) if stop > start else (v[:, :0], own))
        o, state = (torch.cat(x, axis) for x, axis in zip(zip(*parts, strict=True), (1, 0), strict=True))
    return o.to(a.v.dtype), state if a.output_final_state else None


Kernel = Callable[..., tuple[Tensor, Tensor | None]]


def kernel(function: Callable[[Arguments], tuple[Tensor, Tensor | None]]) -> Kernel:
    """Give a function of `Arguments` the signature that users would write."""

    def planted(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        scale: float | None = None,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return function(Arguments(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens))

    planted.__name__ = planted.__qualname__ = function.__name__
    planted.__doc__ = function.__doc__
    planted.__module__ = function.__module__
    return planted


class Backward(torch.autograd.Function):
    """The identity, whose gradient is put through a function."""

    @staticmethod
    def forward(ctx, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


def in_backward(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`x`, its gradient changed."""
    return Backward.apply(x, change)
