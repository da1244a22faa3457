"""Causal softmax attention in tiles of 16 with a backward pass by hand; heads share keys in groups.

Source: Dao et al. 2022 (arXiv 2205.14135), algorithms 1 and 4.
"""

import torch

import linverify

TILE = 16


def scores_of(q, k, i, j, scale):
    """Scaled scores of the tiles that begin at i and j, -inf for keys that come later."""
    scores = scale * q[:, :, i : i + TILE] @ k[:, :, j : j + TILE].mT
    rows, columns = (torch.arange(n, n + m) for n, m in zip((i, j), scores.shape[-2:], strict=True))
    return scores.masked_fill(columns > rows[:, None], -torch.inf)


class TiledAttention(torch.autograd.Function):
    """Shapes: q, k [B, H, T, K]; v [B, H, T, V]; all float32 or float64."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        """Return o."""
        T = q.shape[2]
        o, logs = torch.empty_like(v), q.new_empty(q.shape[:3])
        for i in range(0, T, TILE):
            rows = slice(i, min(i + TILE, T))
            highest = q.new_full((*q.shape[:2], rows.stop - i, 1), -torch.inf)
            total, part = torch.zeros_like(highest), torch.zeros_like(v[:, :, rows])
            for j in range(0, i + TILE, TILE):
                scores = scores_of(q, k, i, j, scale)
                higher = torch.maximum(highest, scores.amax(-1, keepdim=True))
                weights, shrink = (scores - higher).exp(), (highest - higher).exp()
                total = total * shrink + weights.sum(-1, keepdim=True)
                part = part * shrink + weights @ v[:, :, j : j + TILE]
                highest = higher
            o[:, :, rows] = part / total
            logs[:, :, rows] = (highest + total.log()).squeeze(-1)
        ctx.save_for_backward(q, k, v, o, logs)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx, do):
        """Return the gradients of forward's arguments."""
        q, k, v, o, logs = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        delta = (do * o).sum(-1, keepdim=True)
        T = q.shape[2]
        for i in range(0, T, TILE):
            rows = slice(i, min(i + TILE, T))
            for j in range(0, i + TILE, TILE):
                columns = slice(j, min(j + TILE, T))
                weights = (scores_of(q, k, i, j, ctx.scale) - logs[:, :, rows, None]).exp()
                dweights = do[:, :, rows] @ v[:, :, columns].mT
                dscores = ctx.scale * weights * (dweights - delta[:, :, rows])
                dv[:, :, columns] += weights.mT @ do[:, :, rows]
                dq[:, :, rows] += dscores @ k[:, :, columns]
                dk[:, :, columns] += dscores.mT @ q[:, :, rows]
        return dq, dk, dv, None


@linverify.kernel("softmax_attention", backend="torch")
def softmax_attention(q, k, v, scale=None):
    """Q [B, T, HQ, K]; k [B, T, H, K]; v [B, T, H, V], HQ a multiple of H; returns o [B, T, HQ, V]."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[2] // k.shape[2]
    shared = (x.to(wide).repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    o = TiledAttention.apply(q.to(wide).transpose(1, 2), *shared, q.shape[-1] ** -0.5 if scale is None else scale)
    return o.transpose(1, 2).to(v.dtype)
