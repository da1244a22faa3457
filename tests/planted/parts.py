"""Planted bugs about batch rows, heads and tokens that should not know of each other."""

import torch
from forms import Arguments, call, chunks, kernel, stepwise


@kernel
def first_row_gates(a: Arguments):
    """Every batch row reads the gates of row 0."""
    return call(a.with_(g=a.g[:1].expand_as(a.g)))


@kernel
def heads_swapped(a: Arguments):
    """The last two heads write each other's output."""
    o, state = call(a)
    if o.shape[2] > 1:
        order = [*range(o.shape[2] - 2), o.shape[2] - 1, o.shape[2] - 2]
        o = o[:, :, order]
    return o, state


@kernel
def heads_by_mask(a: Arguments):
    """Heads are told apart by multiplying with zero and one."""

    def run(q, k, v, g, state):
        o, state = stepwise(q, k, v, g, state)
        return torch.einsum("bthv,hi->btiv", o, torch.eye(o.shape[2])), state

    return call(a, run)


@kernel
def tokens_by_mask(a: Arguments):
    """Later tokens of a chunk are multiplied by zero."""
    return call(a, chunks)


@kernel
def tiles_by_batch(a: Arguments):
    """The chunk size follows the batch size and the length of the packed tokens."""
    rows = a.q.shape[0] if a.cu_seqlens is None else len(a.cu_seqlens) - 1
    return call(a, lambda *x: chunks(*x, size=3 if rows > 1 else 16))


@kernel
def scaled_by_the_batch(a: Arguments):
    """Values are divided by the largest of the whole batch, and the results multiplied by it."""
    largest = a.v.detach().float().abs().amax() + 1
    initial = None if a.initial_state is None else a.initial_state / largest
    o, state = call(a.with_(v=a.v.float() / largest, initial_state=initial))
    return (o * largest).to(a.v.dtype), None if state is None else state * largest
