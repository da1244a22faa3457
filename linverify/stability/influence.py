"""Influence: the size of d o_t / d x_s, token by token, of the innermost part of a module that mixes tokens.

It is no attention matrix: a token acts through scores as well as through its value, and where the block mixes in its own
forward pass, a residual path counts as a token's own weight. It is what is left to look at where weights cannot be had.

The Frobenius norm comes from random directions: with u of unit variance E |J^T u|^2 = |J|_F^2.
"""

from typing import Any

import torch
from torch import Tensor, nn

_DIRECTIONS, _AT_ONCE = 16, 8
_Called = tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]


def by_influence(block: nn.Module, x: Tensor) -> tuple[Tensor, str]:
    """Influences [N, T, T] of a block at inputs x [B, T, D], and the names of the parts that mix ("" of the block itself).

    Raises:
        ValueError: nothing mixes tokens.
    """
    found, names = [], []
    for name, part, args, kwargs in _innermost(block, x):
        found += [_influence(part, row, args[1:], kwargs) for row in args[0]]
        names.append(name)
    if not found:
        raise ValueError("no part of it mixes tokens")
    return torch.stack(found), ", ".join(n for n in names if n)


def _innermost(block: nn.Module, x: Tensor) -> list[_Called]:
    """The parts that mix tokens although none of their own parts does, with what they were called with."""
    called: list[_Called] = []
    hooks = [
        part.register_forward_pre_hook(
            lambda part, args, kwargs, name=name: called.append((name, part, args, kwargs)), with_kwargs=True
        )
        for name, part in block.named_modules()
    ]
    try:
        block(x)
    finally:
        for hook in hooks:
            hook.remove()
    mixing = [c for c in called if c[2] and _mixes(c[1], c[2], c[3], x.shape[:2])]
    return [c for c in mixing if not any(o is not c and _inside(o[0], c[0]) for o in mixing)]


def _inside(name: str, of: str) -> bool:
    return name != of and (not of or name.startswith(of + "."))


def _mixes(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: torch.Size) -> bool:
    """Whether what comes out at the last token depends on other tokens."""
    if not isinstance(args[0], Tensor) or args[0].shape[:2] != tokens or not args[0].is_floating_point():
        return False
    leaf = args[0].detach().requires_grad_()
    with torch.enable_grad():
        y = part(leaf, *args[1:], **kwargs)
    if not isinstance(y, Tensor) or y.shape[:2] != tokens or not y.requires_grad:
        return False
    last = y[:, -1]
    along = torch.randn(last.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(last)
    (gradient,) = torch.autograd.grad((last * along).sum(), leaf, allow_unused=True)
    reached: Tensor | None = gradient
    return reached is not None and bool(reached[:, :-1].any())


def _influence(part: nn.Module, row: Tensor, more: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """|d o_t / d x_s| [T, T] (Frobenius), by gradients of random directions of o_t."""
    T = row.shape[0]
    generator = torch.Generator().manual_seed(T)
    found = []
    for start in range(0, T, _AT_ONCE):
        tokens = torch.arange(start, min(T, start + _AT_ONCE)).repeat_interleave(_DIRECTIONS)
        leaf = row.detach().expand(len(tokens), *row.shape).clone().requires_grad_()
        with torch.enable_grad():
            y = part(leaf, *more, **kwargs)
            at = y.flatten(2)[torch.arange(len(tokens)), tokens]
            along = torch.randn(at.shape, generator=generator, dtype=torch.float64).to(at)
            (gradient,) = torch.autograd.grad((at * along).sum(), leaf)
        square = gradient.flatten(2).square().sum(-1)
        found.append(square.unflatten(0, (-1, _DIRECTIONS)).mean(1).sqrt())
    return torch.cat(found)
