"""Weights by unit values: what one linear map of a module hands out, token by token, is what a later one takes in, mixed.

    o_tc = sum_s P_ts v_sc

Values that are one at a token and zero elsewhere give P. Which map hands out values, and as which part of what it hands out, is
tried and not guessed from names: P is taken only where it reproduces o from random values, so that queries, keys, gates, and
whatever stands behind a norm are none.
"""

from typing import Any

import torch
from torch import Tensor, nn

# Between what is linear up to rounding (float32's, where a kernel computes in it) and what is not.
_LINEAR = 2.0**-12
# Fused projections hand out values as one of so many equal parts.
_PARTS = (1, 3, 4)


@torch.no_grad()
def by_values(block: nn.Module, x: Tensor) -> Tensor | None:
    """Weights [N, T, T] of a block at inputs x [B, T, D], a head or a channel each; None where no map hands out values."""
    order: list[nn.Linear] = []
    hooks = [
        part.register_forward_pre_hook(lambda part, _: order.append(part))
        for part in block.modules()
        if isinstance(part, nn.Linear)
    ]
    try:
        block(x)
    finally:
        for hook in hooks:
            hook.remove()
    for position, source in enumerate(order):
        for reader in order[position + 1 :]:
            width = reader.in_features
            if (
                order.count(source) > 1
                or order.count(reader) > 1
                or source.out_features not in (n * width for n in _PARTS)
            ):
                continue
            for start in range(source.out_features - width, -1, -width):  # values come last
                if (found := _read(block, x, source, reader, slice(start, start + width))) is not None:
                    return found
    return None


def _read(block: nn.Module, x: Tensor, source: nn.Linear, reader: nn.Linear, part: slice) -> Tensor | None:
    """Weights [N, T, T] if what the reader takes in is a linear mixture of that part over tokens, channel by channel."""
    T, width = x.shape[1], reader.in_features
    unit = torch.eye(T, dtype=x.dtype, device=x.device)[:, :, None].expand(T, T, width)
    drawn = torch.randn(2, T, width, generator=torch.Generator().manual_seed(T), dtype=torch.float64).to(x)
    found = []
    for row in x:
        taken = _mixed(block, row, source, reader, part, torch.cat([unit, drawn]))
        if taken is None:
            return None
        p, o = taken[:T].permute(2, 1, 0), taken[T:]  # [channels, t, s]
        if not bool(p.isfinite().all()) or not bool((p - p.diagonal(0, 1, 2).diag_embed()).any()):
            return None
        again = torch.einsum("cts,bsc->btc", p, drawn)
        sizes = torch.einsum("cts,bsc->btc", p.abs(), drawn.abs())
        if bool(((o - again).abs() > _LINEAR * sizes).any()):
            return None
        found.append(_distinct(p))
    return torch.cat(found)


def _mixed(
    block: nn.Module, row: Tensor, source: nn.Linear, reader: nn.Linear, part: slice, values: Tensor
) -> Tensor | None:
    """What the reader takes in [N, T, width] where that part of the source's results is values [N, T, width]."""
    taken: list[Tensor] = []

    def given(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[..., part] = values
        return out

    hooks = [source.register_forward_hook(given)]
    hooks.append(reader.register_forward_pre_hook(lambda _, args: taken.append(args[0])))
    try:
        block(row.expand(len(values), *row.shape))
    except (RuntimeError, ValueError, TypeError, IndexError):  # what it hands out are no values of that shape
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return taken[0] if taken and taken[0].shape == values.shape else None


def _distinct(p: Tensor) -> Tensor:
    """Of neighbouring channels that mix alike (one head's) the first."""
    apart = (p[1:] - p[:-1]).abs().amax((1, 2)) > _LINEAR * p[:-1].abs().amax((1, 2))
    return p[torch.cat([apart.new_ones(1), apart])]
