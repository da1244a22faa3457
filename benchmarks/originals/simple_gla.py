"""Simple GLA in chunks of 16 with a backward pass by hand: one log gate g_t a head, S_t = exp(g_t) S_{t-1} + k_t v_t^T."""

import torch
from torch.nn.functional import pad

import linverify

CHUNK = 16


def chunks(x, padding):
    """[N, T, ...] as a list of [N, 16, ...], zeros after the end."""
    return pad(x, (0, 0) * (x.dim() - 2) + (0, padding)).split(CHUNK, 1)


def decays(g):
    """Decays from each token j to each token i >= j [N, 16, 16], from the start to each, and from each to the end."""
    total = g.cumsum(1)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    between = (total[:, :, None] - total[:, None, :]).masked_fill(later, -torch.inf).exp()
    return between, total.exp()[..., None], (total[:, -1:] - total).exp()[..., None]


class ChunkSimpleGLA(torch.autograd.Function):
    """Shapes: q, k [N, T, K]; v [N, T, V]; g [N, T]; state [N, K, V]; all float32 or float64."""

    @staticmethod
    def forward(ctx, q, k, v, g, state, scale):
        """Return o and the final state."""
        T = q.shape[1]
        padding = -T % CHUNK
        outputs, states = [], [state]
        for Q, X, Y, G in zip(*(chunks(x, padding) for x in (q, k, v, g)), strict=True):
            between, from_start, to_end = decays(G)
            scores = Q @ X.mT * between
            outputs.append(scale * (scores @ Y + (Q * from_start) @ state))
            state = from_start[:, -1:] * state + (X * to_end).mT @ Y
            states.append(state)
        ctx.save_for_backward(q, k, v, g, *states)
        ctx.scale = scale
        return torch.cat(outputs, 1)[:, :T], state.clone()

    @staticmethod
    def backward(ctx, do, dstate):
        """Return the gradients of forward's arguments."""
        q, k, v, g, *states = ctx.saved_tensors
        T = q.shape[1]
        padding = -T % CHUNK
        parts = list(zip(*(chunks(x, padding) for x in (q, k, v, g, do * ctx.scale)), strict=True))
        grads = [[], [], [], []]
        for i in reversed(range(len(parts))):
            Q, X, Y, G, dO = parts[i]
            between, from_start, to_end = decays(G)
            dscores = dO @ Y.mT * between
            dQ = dscores @ X + dO @ states[i].mT * from_start
            dX = dscores.mT @ Q + Y @ dstate.mT * to_end
            dY = (Q @ X.mT * between).mT @ dO + (X * to_end) @ dstate
            # A gate scales what was written before it and is read from it on: reads minus writes, and the state beyond.
            flow = (Q * dQ - X * dX).sum(-1).flip(1).cumsum(1).flip(1)
            dG = flow + (states[i + 1] * dstate).sum((1, 2))[:, None]
            dstate = from_start[:, -1:] * dstate + (Q * from_start).mT @ dO
            for found, part in zip(grads, (dQ, dX, dY, dG), strict=True):
                found.insert(0, part)
        dq, dk, dv, dg = (torch.cat(x, 1)[:, :T] for x in grads)
        return dq, dk, dv, dg, dstate, None


@linverify.kernel("simple_gla", form="chunkwise", backend="torch")
def simple_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    """q, k [B, T, H, K]; v [B, T, H, V]; g [B, T, H]; initial_state [B, H, K, V]; returns o and the final state or None."""
    B, _, H, K, V = *q.shape, v.shape[-1]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    state = torch.zeros(B, H, K, V, dtype=wide) if initial_state is None else initial_state.to(wide)
    rows = (x.to(wide).transpose(1, 2).flatten(0, 1) for x in (q, k, v, g))
    o, final = ChunkSimpleGLA.apply(*rows, state.flatten(0, 1), K**-0.5 if scale is None else scale)
    o = o.unflatten(0, (B, H)).transpose(1, 2).to(v.dtype)
    return o, final.unflatten(0, (B, H)) if output_final_state else None
