"""The delta rule token by token with a backward pass by hand: S_t = S_{t-1} + k_t u_t^T, u_t = beta_t (v_t - S_{t-1}^T k_t)."""

import torch

import linverify


class RecurrentDeltaRule(torch.autograd.Function):
    """Shapes: q, k [B, T, H, K]; v [B, T, H, V]; beta [B, T, H]; state [B, H, K, V]; all float32 or float64."""

    @staticmethod
    def forward(ctx, q, k, v, beta, state, scale):
        """Return o and the final state."""
        o, states = torch.empty_like(v), [state]
        for t in range(q.shape[1]):
            key = k[:, t, :, :, None]
            read = (state * key).sum(-2)
            update = beta[:, t, :, None] * (v[:, t] - read)
            state = state + key * update[:, :, None, :]
            o[:, t] = scale * (state * q[:, t, :, :, None]).sum(-2)
            states.append(state)
        ctx.save_for_backward(q, k, v, beta, *states)
        ctx.scale = scale
        return o, state.clone()

    @staticmethod
    def backward(ctx, do, dstate):
        """Return the gradients of forward's arguments."""
        q, k, v, beta, *states = ctx.saved_tensors
        dq, dk, dv, dbeta = (torch.empty_like(x) for x in (q, k, v, beta))
        for t in reversed(range(q.shape[1])):
            before, after, weight = states[t], states[t + 1], beta[:, t, :, None]
            upstream = do[:, t, :, None, :] * ctx.scale
            dq[:, t] = (after * upstream).sum(-1)
            dstate = dstate + q[:, t, :, :, None] * upstream
            key = k[:, t, :, :, None]
            error = v[:, t] - (before * key).sum(-2)
            dupdate = (dstate * key).sum(-2)
            dbeta[:, t] = (dupdate * error).sum(-1)
            dv[:, t] = weight * dupdate
            dk[:, t] = (dstate * (weight * error)[:, :, None, :]).sum(-1) - (before * dv[:, t, :, None, :]).sum(-1)
            dstate = dstate - key * dv[:, t, :, None, :]
        return dq, dk, dv, dbeta, dstate, None


@linverify.kernel("delta_rule", form="recurrent", backend="torch")
def delta_rule(q, k, v, beta, scale=None, initial_state=None, output_final_state=False):
    """q, k [B, T, H, K]; v [B, T, H, V]; beta [B, T, H]; initial_state [B, H, K, V]; returns o and the final state or None."""
    B, _, H, K, V = *q.shape, v.shape[-1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    state = torch.zeros(B, H, K, V, dtype=wide) if initial_state is None else initial_state.to(wide)
    scale = K**-0.5 if scale is None else scale
    o, final = RecurrentDeltaRule.apply(q.to(wide), k.to(wide), v.to(wide), beta.to(wide), state, scale)
    return o.to(v.dtype), final if output_final_state else None
