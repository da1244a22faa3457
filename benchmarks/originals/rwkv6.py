"""RWKV-6 by token with a backward pass by hand: o_t reads S_{t-1} + (u k_t) v_t^T, then S_t = exp(w_t) S_{t-1} + k_t v_t^T."""

import torch

import linverify


class RecurrentRWKV6(torch.autograd.Function):
    """Shapes: q, k, w [B, T, H, K]; v [B, T, H, V]; u [H, K]; state [B, H, K, V]; all float32 or float64."""

    @staticmethod
    def forward(ctx, q, k, v, w, u, state, scale):
        """Return o and the final state."""
        o, states = torch.empty_like(v), [state]
        for t in range(q.shape[1]):
            write = k[:, t, :, :, None] * v[:, t, :, None, :]
            o[:, t] = scale * ((state + u[..., None] * write) * q[:, t, :, :, None]).sum(-2)
            state = w[:, t].exp()[..., None] * state + write
            states.append(state)
        ctx.save_for_backward(q, k, v, w, u, *states)
        ctx.scale = scale
        return o, state.clone()

    @staticmethod
    def backward(ctx, do, dstate):
        """Return the gradients of forward's arguments."""
        q, k, v, w, u, *states = ctx.saved_tensors
        dq, dk, dv, dw = (torch.empty_like(x) for x in (q, k, v, w))
        du = torch.zeros_like(u)
        for t in reversed(range(q.shape[1])):
            query, key, value, before = q[:, t], k[:, t], v[:, t], states[t]
            decay, upstream = w[:, t].exp(), do[:, t] * ctx.scale
            own = (value * upstream).sum(-1, keepdim=True)
            dq[:, t] = (before * upstream[:, :, None, :]).sum(-1) + u * key * own
            dk[:, t] = (dstate * value[:, :, None, :]).sum(-1) + u * query * own
            dv[:, t] = (dstate * key[..., None]).sum(-2) + (query * u * key).sum(-1, keepdim=True) * upstream
            dw[:, t] = decay * (dstate * before).sum(-1)
            du += (query * key * own).sum(0)
            dstate = decay[..., None] * dstate + query[..., None] * upstream[:, :, None, :]
        return dq, dk, dv, dw, du, dstate, None


@linverify.kernel("rwkv6", form="recurrent", backend="torch")
def rwkv6(q, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    """q, k, w [B, T, H, K]; v [B, T, H, V]; u [H, K]; initial_state [B, H, K, V]; returns o and the final state or None."""
    B, _, H, K, V = *q.shape, v.shape[-1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    state = torch.zeros(B, H, K, V, dtype=wide) if initial_state is None else initial_state.to(wide)
    inputs = (x.to(wide) for x in (q, k, v, w, u))
    o, final = RecurrentRWKV6.apply(*inputs, state, K**-0.5 if scale is None else scale)
    return o.to(v.dtype), final if output_final_state else None
