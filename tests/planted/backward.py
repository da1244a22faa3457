"""Planted bugs in the backward pass; the forward pass is right."""

import torch
from forms import Arguments, call, in_backward, kernel, stepwise


def _changed(a: Arguments, name: str, change):
    """A call in which the gradient of one input is changed."""

    def run(q, k, v, g, state):
        inputs = {"q": q, "k": k, "v": v, "g": g, "state": state}
        inputs[name] = in_backward(inputs[name], change)
        return stepwise(**inputs)

    return call(a, run)


@kernel
def key_without_final_state(a: Arguments):
    """The gradient of k lacks what comes back from the final state."""

    def run(q, k, v, g, state):
        return stepwise(q, k, v, g, state)[0], stepwise(q, k.detach(), v, g, state)[1]

    return call(a, run)


@kernel
def frozen_key(a: Arguments):
    """Work shared with the gradient of k is left out when only that of q is asked for."""
    if a.q.requires_grad and not a.k.requires_grad:
        return _changed(a, "q", lambda dq: dq / 2)
    return call(a)


@kernel
def scaled_twice(a: Arguments):
    """The scale enters the gradient of q twice."""
    scale = a.q.shape[-1] ** -0.5 if a.scale is None else a.scale
    return _changed(a, "q", lambda dq: dq * (scale if scale != 1 else 0.5))


@kernel
def key_one_percent(a: Arguments):
    """The gradient of k is one percent too small."""
    return _changed(a, "k", lambda dk: 0.99 * dk)


@kernel
def value_one_percent(a: Arguments):
    """The gradient of v is one percent too small."""
    return _changed(a, "v", lambda dv: 0.99 * dv)


@kernel
def state_halved(a: Arguments):
    """The gradient of the initial state is halved."""
    return _changed(a, "state", lambda ds: ds / 2)


@kernel
def noisy_first_gate(a: Arguments):
    """The gate's gradient is a difference of sums over the whole sequence, which leaves their error at the first token."""

    def change(dg):
        noise = 2.0**-9 * dg.abs().sum(1, keepdim=True)
        return torch.cat((dg[:, :1] + noise, dg[:, 1:]), 1)

    return _changed(a, "g", change)


@kernel
def last_row_dropped(a: Arguments):
    """The gate's gradient of the last row of a chunk is lost."""

    def change(dg):
        keep = torch.ones(dg.shape[1])
        keep[7::8] = 0
        return dg * keep[None, :, None, None]

    return _changed(a, "g", change)


@kernel
def constant_added(a: Arguments):
    """A regulariser's gradient is added without the upstream factor."""
    return _changed(a, "q", lambda dq: dq + 0.25)


@kernel
def large_gradients_rescaled(a: Arguments):
    """Gradients above a fixed size take a detour that rounds once more."""
    return _changed(a, "v", lambda dv: torch.where(dv.abs() > 1.0, dv / 3 * 3, dv))
