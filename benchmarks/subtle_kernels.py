"""A low-precision chunkwise kernel in torch, written apart from linverify's rounding model, with faults to plant in it.

Every operand of every product is rounded to the kernel's format, forward and backward; sums and the carried state are float32.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK = 32
# Faults inside the kernel: which operators have the part that is broken.
GATED = ("simple_gla", "gla", "gated_delta_rule", "retention")
INSIDE: dict[str, tuple[str, ...]] = {
    "scores in bf16": (),
    "carried state in bf16": (),
    "gate sums in bf16": GATED,
    "accumulation in bf16": (),
    "exponential off by 1e-3": GATED,
    "exponential off by 1e-4": GATED,
    "decay of q one token late": GATED,
    "decay of k one token late": GATED,
    "a head with another head's gate": GATED,
    "diagonal left out": (),
    "last token masked": (),
    "state of the chunk before": (),
}


def cut_tf32(x: Tensor) -> Tensor:
    """Drop the bits that a tensor core drops."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "fp32": lambda x: x,
    "tf32": cut_tf32,
    "bf16": lambda x: x.bfloat16().float(),
    "fp16": lambda x: x.half().float(),
}


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, fmt: str, out: str) -> Tensor:
        r = ROUNDING[fmt]
        a, b = r(a), r(b)
        ctx.save_for_backward(a, b)
        ctx.fmt, ctx.out = fmt, out
        return ROUNDING[out](a @ b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = ctx.saved_tensors
        g, o = ROUNDING[ctx.fmt](grads[0]), ROUNDING[ctx.out]
        return o(g @ b.mT), o(a.mT @ g), None, None


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: str) -> Tensor:
        ctx.fmt = fmt
        return ROUNDING[fmt](x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ROUNDING[ctx.fmt](grads[0]), None


def chunked(x: dict[str, Tensor], state: Tensor, scale: float, fmt: str, fault: str = "") -> tuple[Tensor, Tensor]:
    """O [N, T, V] and the final state [N, K, V] in float32.

    Args:
        x: q, k [N, T, K], v [N, T, V], perhaps g [N, T, 1 or K] and beta [N, T, 1]; float32, a row a head.
        state: initial [N, K, V].
        scale: factor on o.
        fmt: format of operands.
        fault: one of INSIDE, or "".
    """
    out = "bf16" if fault == "accumulation in bf16" else "fp32"

    def mm(a: Tensor, b: Tensor) -> Tensor:
        return _Product.apply(a, b, fmt, out)  # type: ignore[no-any-return, no-untyped-call]  # torch's own

    def kept(y: Tensor, where: str) -> Tensor:
        return _Kept.apply(y, "bf16") if fault == where else y  # type: ignore[no-any-return, no-untyped-call]  # torch's

    q, k, v, g, beta = (x.get(n) for n in ("q", "k", "v", "g", "beta"))
    assert q is not None
    assert k is not None
    assert v is not None
    q = scale * q
    if g is not None and fault == "a head with another head's gate":
        g = torch.cat([g[:1], g[:1], g[2:]])
    outs, entered = [], [state]
    T = q.shape[1]
    for at in range(0, T, CHUNK):
        qc, kc, vc = (t[:, at : at + CHUNK] for t in (q, k, v))
        n = qc.shape[1]
        gc = torch.zeros_like(qc[..., :1]) if g is None else g[:, at : at + n]
        G = kept(gc.cumsum(1), "gate sums in bf16")
        slip = {"exponential off by 1e-3": 1e-3, "exponential off by 1e-4": 1e-4}.get(fault, 0.0)

        def exp(y: Tensor, slip: float = slip) -> Tensor:
            return y.exp() * (1 + slip)

        rows = torch.arange(n)
        causal = rows[:, None] > rows[None] if fault == "diagonal left out" else rows[:, None] >= rows[None]
        if fault == "last token masked" and at + n == T and n > 1:
            causal = causal & (rows[None] != n - 1)
        gap = (G[:, :, None] - G[:, None]).masked_fill(~causal[None, :, :, None], -torch.inf)
        decay = exp(gap)
        if decay.shape[-1] == 1:
            P = mm(qc, kc.mT) * decay[..., 0]
        else:
            P = (qc[:, :, None] * kc[:, None] * decay).sum(-1)
        P = kept(P.masked_fill(~causal, 0.0), "scores in bf16")
        into = exp(G - gc if fault == "decay of q one token late" else G)
        left = exp(G[:, -1:] - (G - gc if fault == "decay of k one token late" else G))
        seen = entered[-2] if fault == "state of the chunk before" and len(entered) > 2 else state
        if beta is not None:
            bc = beta[:, at : at + n]
            strict = rows[:, None] > rows[None]
            A = (mm(kc, kc.mT) * exp(gap)[..., 0] * bc).masked_fill(~strict, 0.0)
            inverse = torch.linalg.solve_triangular(torch.eye(n) + A, torch.eye(n).expand_as(A), upper=False)
            vc = mm(inverse, bc * vc) - mm(mm(inverse, bc * kc * exp(G)), state)
        if decay.shape[-1] == 1:  # a scalar decay goes to results and values, as published kernels have it
            outs.append(mm(qc, seen) * into + mm(P, vc))
            written = mm(kc.mT, left * vc)
        else:
            outs.append(mm(qc * into, seen) + mm(P, vc))
            written = mm((kc * left).mT, vc)
        state = kept(exp(G[:, -1:]).mT * state + written, "carried state in bf16")
        entered.append(state)
    return torch.cat(outs, 1), state


def stepped(x: dict[str, Tensor], state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The recurrence token by token in the dtype of its inputs: what an eager program computes."""
    outs = []
    g, beta = x.get("g"), x.get("beta")
    for t in range(x["q"].shape[1]):
        k, v = x["k"][:, t], x["v"][:, t]
        if g is not None:
            state = state * g[:, t].to(state.dtype).exp()[:, :, None]
        if beta is not None:
            v = beta[:, t] * (v - (k[:, :, None] * state).sum(1))
        state = state + k[:, :, None] * v[:, None]
        outs.append(scale * (x["q"][:, t, :, None] * state).sum(1))
    return torch.stack(outs, 1), state
