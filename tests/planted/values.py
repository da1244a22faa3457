"""Planted bugs about values: what depends on their size, their scale or their being equal."""

import torch
from forms import Arguments, call, chunks, kernel, stepwise


@kernel
def ragged_tail(a: Arguments):
    """The last chunk is decayed as if it were full."""

    def run(q, k, v, g, state):
        o, state = chunks(q, k, v, g, state)
        missing = -q.shape[1] % 16
        return o, state * (g[:, -1] * missing).exp().unsqueeze(-1)

    return call(a, run)


@kernel
def values_by_largest(a: Arguments):
    """Values are kept as 8-bit fractions of the largest one."""
    v = a.v.float()
    unit = v.abs().amax().clamp(min=2.0**-100) / 127
    coarse = ((v / unit).round() * unit).to(a.v.dtype)
    return call(a.with_(v=a.v + (coarse - a.v).detach()))


@kernel
def large_values_rescaled(a: Arguments):
    """Values above a fixed size take a detour that rounds once more."""

    def run(q, k, v, g, state):
        return stepwise(q, k, torch.where(v.abs() > 1.0, v / 3 * 3, v), g, state)

    return call(a, run)


@kernel
def values_centred(a: Arguments):
    """Values are centred and shifted back, which rounds them once more."""

    def run(q, k, v, g, state):
        centre = v.mean(-1, keepdim=True)
        return stepwise(q, k, (v - centre) + centre, g, state)

    return call(a, run)


@kernel
def scalar_branch(a: Arguments):
    """Gates that are equal in all channels, and nowhere zero, take a branch that halves them."""
    if a.g.shape[-1] > 1 and bool((a.g == a.g[..., :1]).all()) and bool(a.g.all()):
        return call(a.with_(g=a.g * 0.5))
    return call(a)


@kernel
def other_default_scale(a: Arguments):
    """The default scale is 1."""
    return call(a.with_(scale=1.0 if a.scale is None else a.scale))


@kernel
def infinite_differences(a: Arguments):
    """Decays are differences of cumulative gates: infinity less infinity is NaN."""
    return call(a, chunks)


@kernel
def clamped_exponents(a: Arguments):
    """Minus infinity is taken for -80: of what it is to forget, exp(-80) is left."""
    return call(a.with_(g=torch.where(a.g.isinf(), -80.0, a.g)))
