"""Mamba-2 token by token with a backward pass by hand: S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T, y_t = S_t^T C_t.

Source: Dao and Gu 2024 (arXiv 2405.21060), section 2; heads share B and C in groups.
"""

import torch

import linverify


class RecurrentMamba2(torch.autograd.Function):
    """Shapes: x [b, T, H, P]; dt [b, T, H]; A [H]; B, C [b, T, H, D]; state [b, H, D, P]; all float32 or float64."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, state):
        """Return y and the final state."""
        y, states = torch.empty_like(x), [state]
        for t in range(x.shape[1]):
            step = dt[:, t, :, None]
            write = B[:, t, :, :, None] * (step * x[:, t])[:, :, None, :]
            state = (step * A[:, None]).exp()[..., None] * state + write
            y[:, t] = (state * C[:, t, :, :, None]).sum(-2)
            states.append(state)
        ctx.save_for_backward(x, dt, A, B, C, *states)
        return y, state.clone()

    @staticmethod
    def backward(ctx, dy, dstate):
        """Return the gradients of forward's arguments."""
        x, dt, A, B, C, *states = ctx.saved_tensors
        dx, ddt, dB, dC = (torch.empty_like(z) for z in (x, dt, B, C))
        dA = torch.zeros_like(A)
        for t in reversed(range(x.shape[1])):
            upstream = dy[:, t, :, None, :]
            dC[:, t] = (states[t + 1] * upstream).sum(-1)
            dstate = dstate + C[:, t, :, :, None] * upstream
            decay = (dt[:, t] * A).exp()
            dexponent = (dstate * states[t]).sum((-1, -2)) * decay
            dvalue = (dstate * B[:, t, :, :, None]).sum(-2)
            dB[:, t] = (dstate * x[:, t, :, None, :]).sum(-1) * dt[:, t, :, None]
            dx[:, t] = dvalue * dt[:, t, :, None]
            ddt[:, t] = (dvalue * x[:, t]).sum(-1) + dexponent * A
            dA += (dexponent * dt[:, t]).sum(0)
            dstate = decay[..., None, None] * dstate
        return dx, ddt, dA, dB, dC, dstate


@linverify.kernel("mamba2", form="recurrent", backend="torch")
def mamba2(x, dt, A, B, C, initial_state=None, output_final_state=False):
    """Shapes: x [b, T, H, P]; dt [b, T, H]; A [H]; B, C [b, T, G, D]; initial_state [b, H, D, P]; returns y and the state."""
    b, _, H, P, D = *x.shape, B.shape[-1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    state = torch.zeros(b, H, D, P, dtype=wide) if initial_state is None else initial_state.to(wide)
    heads = (z.to(wide).repeat_interleave(H // z.shape[2], 2) for z in (B, C))
    y, final = RecurrentMamba2.apply(x.to(wide), dt.to(wide), A.to(wide), *heads, state)
    return y.to(x.dtype), final if output_final_state else None
