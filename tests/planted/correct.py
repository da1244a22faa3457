"""The correct twins of the planted kernels."""

import torch
from forms import Arguments, call, chunks, kernel


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
