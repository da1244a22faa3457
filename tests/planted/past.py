"""Planted bugs about time: what a token may see, and what is carried on."""

import torch
from forms import Arguments, call, in_backward, kernel, stepwise


@kernel
def stabilised_by_all(a: Arguments):
    """Values are divided by the largest of the whole sequence and multiplied back: rounding follows the future."""

    def run(q, k, v, g, state):
        largest = v.detach().abs().amax((1, 3), keepdim=True).clamp(min=2.0**-100)
        return stepwise(q, k, v / largest * largest, g, state)

    return call(a, run)


@kernel
def gates_read_late(a: Arguments):
    """Every token takes the gate of the next one."""

    def run(q, k, v, g, state):
        return stepwise(q, k, v, torch.cat((g[:, 1:], g[:, -1:]), 1), state)

    return call(a, run)


@kernel
def gradient_flows_on(a: Arguments):
    """The gradient of a token's value leaks to the next token with a weight of 1e-9."""

    def leak(dv):
        return dv + 1e-9 * torch.cat((torch.zeros_like(dv[:, :1]), dv[:, :-1]), 1)

    def run(q, k, v, g, state):
        return stepwise(q, k, in_backward(v, leak), g, state)

    return call(a, run)


@kernel
def short_pieces_forget(a: Arguments):
    """A single token takes the decoding path, which starts from an empty state."""

    def run(q, k, v, g, state):
        return stepwise(q, k, v, g, state if q.shape[1] > 1 else state * 0)

    return call(a, run)


@kernel
def documents_run_on(a: Arguments):
    """The state is not cleared between packed sequences."""
    if a.cu_seqlens is None:
        return call(a)
    first = None if a.initial_state is None else a.initial_state[:1]
    o, state = call(a.with_(initial_state=first, cu_seqlens=None))
    return o, None if state is None else state.expand(len(a.cu_seqlens) - 1, *state.shape[1:]).clone()


@kernel
def factored_decay(a: Arguments):
    """Scores as (q exp(G)) (k exp(-G)): the second factor overflows at strong decay."""

    def run(q, k, v, g, state):
        total = g.cumsum(1)
        grown = torch.einsum("bihk,bjhk->bhij", q * total.exp(), k * (-total).exp()).tril()
        o = torch.einsum("bhij,bjhv->bihv", grown, v) + torch.einsum("bihk,bhkv->bihv", q * total.exp(), state)
        rest = (total[:, -1:] - total).exp()
        return o, total[:, -1].exp().unsqueeze(-1) * state + torch.einsum("bjhk,bjhv->bhkv", k * rest, v)

    def in_chunks(q, k, v, g, state):
        o = []
        for start in range(0, q.shape[1], 16):
            part = slice(start, start + 16)
            now, state = run(q[:, part], k[:, part], v[:, part], g[:, part], state)
            o.append(now)
        return torch.cat(o, 1), state

    return call(a, in_chunks)
