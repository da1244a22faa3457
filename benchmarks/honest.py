"""A kernel that is right, and how a breakdown is put behind it: what the kernels that break down share."""

import functools

import torch


def honest(q, k, v, g, scale=None):
    """Gated linear attention, token by token."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state, o = torch.zeros(*q.shape[::2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        state = state * g[:, t].float().exp().unsqueeze(-1) + k[:, t, :, :, None].float() * v[:, t, :, None].float()
        o.append((scale * q[:, t, :, :, None].float() * state).sum(-2))
    return torch.stack(o, 1).to(v.dtype)


def faults(right, table, strike):
    """Return the decorator that makes a kernel of a breakdown: `right`, and beyond four tokens `strike(breaks, o)`.

    The decorator takes the verdict that must come of it ("" for none), and enters it into `table` under the breakdown's name.
    """

    def fault(kind):
        def make(breaks):
            @functools.wraps(breaks)
            def kernel(q, k, v, g, scale=None):
                o = right(q, k, v, g, scale)
                if q.shape[1] > 4:
                    strike(breaks, o)
                return o

            kernel.__wrapped__ = right
            table[breaks.__name__] = kind
            return kernel

        return make

    return fault
