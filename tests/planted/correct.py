"""The correct twins of the planted kernels."""

import torch
from forms import Arguments, call, chunks, kernel

import linverify


@kernel
def by_token(a: Arguments):
    """Token by token: obeys every law, the reported ones included."""
    return call(a)


@kernel
def by_chunk(a: Arguments):
    """In chunks: obeys every required law."""
    return call(a, chunks)


@kernel
def by_powers_of_two(a: Arguments):
    """Token by token, to base two as on GPUs: a gate's gradient comes home through two rounded constants."""

    def run(q, k, v, g, state):
        exponent, o = g * 1.4426950408889634, []
        for t in range(q.shape[1]):
            state = exponent[:, t].exp2().unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
            o.append((q[:, t].unsqueeze(-1) * state).sum(-2))
        return torch.stack(o, 1), state

    return call(a, run)


class _PrefixSums(torch.autograd.Function):
    """The gate's gradient is the sum of q dq - k dk over later tokens, taken as the whole sum less the one up to here."""

    @staticmethod
    def forward(ctx, q, k, v, g, scale):
        ctx.save_for_backward(q, k, v, g)
        ctx.scale = scale
        return _PrefixSums.output(q, k, v, g, scale)

    @staticmethod
    def output(q, k, v, g, scale):
        return call(Arguments(q, k, v, g, scale, None, False, None), chunks)[0]

    @staticmethod
    def backward(ctx, do):
        q, k, v, g = ctx.saved_tensors
        leaves = [x.detach().float().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad():
            o = _PrefixSums.output(*leaves, g.detach(), ctx.scale)
        dq, dk, dv = torch.autograd.grad(o, leaves, do.float())
        terms = q.float() * dq - k.float() * dk
        dg = terms.sum(1, keepdim=True) - terms.cumsum(1) + terms
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dg.to(g.dtype), None


@linverify.kernel("gla", form="chunkwise")
def prefix_sums(q, k, v, g, scale=None):
    """A gate's gradient is a difference of sums, as in fla's chunk_gla: zero, up to rounding, where nothing counts later."""
    return _PrefixSums.apply(q, k, v, g, scale)
