"""Planted bugs of the delta rule, and its correct twin.

S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T,    o_t = scale * S_t^T q_t
"""

import torch
from forms import in_backward
from torch import Tensor


def _stepwise(q, k, v, beta, scale, state, *, read_key=lambda k: k):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = v.dtype
    q, k, v, beta = q.float() * scale, k.float(), v.float(), beta.float()
    state = torch.zeros(q.shape[0], *q.shape[2:], v.shape[-1]) if state is None else state
    o = []
    for t in range(q.shape[1]):
        error = v[:, t] - (read_key(k[:, t]).unsqueeze(-1) * state).sum(-2)
        state = state + (beta[:, t].unsqueeze(-1) * k[:, t]).unsqueeze(-1) * error.unsqueeze(-2)
        o.append((q[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(o, 1).to(dtype), state


def correct(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
):
    o, state = _stepwise(q, k, v, beta, scale, initial_state)
    return o, state if output_final_state else None


def key_path_lost(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
):
    """The gradient of k loses half of what comes through the key's reading of the state."""
    half = lambda key: in_backward(key, lambda dk: dk / 2)  # noqa: E731
    o, state = _stepwise(q, k, v, beta, scale, initial_state, read_key=half)
    return o, state if output_final_state else None
