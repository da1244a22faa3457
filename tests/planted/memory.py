"""Planted bugs about memory: strides that are taken for granted."""

import torch
from forms import Arguments, call, in_backward, kernel


def _packed(x):
    """Read `x` as if it were contiguous, from its first element on."""
    strides, width = [], 1
    for n in reversed(x.shape):
        strides.insert(0, width)
        width *= n
    reach = x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()
    if reach < width:
        raise ValueError(f"expected {width} elements in memory, got {reach}")
    return torch.as_strided(x, x.shape, strides, x.storage_offset())


@kernel
def contiguous_values(a: Arguments):
    """Reads v as if it were contiguous."""
    return call(a.with_(v=_packed(a.v)))


@kernel
def contiguous_cotangent(a: Arguments):
    """Reads the upstream gradient as if it were contiguous."""
    o, state = call(a)
    return in_backward(o, _packed), state


@kernel
def transposed_output(a: Arguments):
    """Returns o as a transposed view of a buffer with heads before tokens."""
    o, state = call(a)
    return o.transpose(1, 2).contiguous().transpose(1, 2), state


class _Finishing(torch.autograd.Function):
    """Writes the last token while it computes gradients."""

    @staticmethod
    def forward(ctx, o):
        ctx.o = o.detach().clone()
        ctx.o[:, -1] *= 1 + 2.0**-22
        return ctx.o.view_as(ctx.o)

    @staticmethod
    def backward(ctx, do):
        ctx.o[:, -1] += 2.0**-20
        return do


@kernel
def finished_late(a: Arguments):
    """Touches its output up after it was returned, as work on another stream would."""
    o, state = call(a)
    return (_Finishing.apply(o) if o.requires_grad else o), state


@kernel
def offsets_in_32_bits(a: Arguments):
    """Finds tokens by offsets that wrap around at 2^31; where they do it reads zeros."""
    found = torch.ones(a.v.shape[1], dtype=torch.bool)
    for x in (a.q, a.k, a.v, a.g):
        offsets = torch.arange(x.shape[1]) * x.stride(1)
        found &= offsets.int().long() == offsets
    return call(a.with_(v=a.v * found[:, None, None].to(a.v.dtype)))
