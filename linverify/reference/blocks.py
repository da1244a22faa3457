"""States at the boundaries of chunks, by blocks of chunks: what a loop over all chunks gives, in few large operations.

A chunk takes a state S to A S + B. Within a block of chunks that is composed at once for all blocks; from block to block the
same is done again, and with the state that enters each block all of them go through their chunks at once (Blelloch 1990, Prefix
sums and their applications, section 1.4). Cotangents take the same way back with A transposed, and what they meet on it are the
states: the adjoint is written out. Worth its arithmetic on a GPU, where a loop waits for every launch.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Up to so many chunks a loop has as few launches.
_FEW = 16
# Bytes of the tensors that blocks make, beyond which a loop is as good: its operations are large.
_LARGEST = 2**32


def walked(by: Tensor, added: Tensor, state: Tensor, *, back: bool = False) -> tuple[Tensor, Tensor]:
    """States that enter chunks [N, n, K, V], and the last that leaves [N, K, V], without gradients.

    Args:
        by: what chunks do to a state: factors [N, n, K or 1, 1], or matrices [N, n, K, K].
        added: what they add [N, n, K, V].
        state: that enters the first [N, K, V].
        back: go from the last chunk to the first, through transposed matrices.
    """
    N, n, K, V = added.shape
    size = _block(n)
    made = added.element_size() * N * n * K * (by.shape[-1] + V)
    if n <= _FEW or made > _LARGEST:
        states = _walked(by, added, state, back=back)
        end = 0 if back else n - 1
        return states, _through(_each(by, back=back)[end], states[:, end], added[:, end].clone())
    blocks = -(-n // size)
    by, added = _cut(by, blocks, size, 1.0), _cut(added, blocks, size, 0.0)
    whole, left = (x.unflatten(0, (N, blocks)) for x in _composed(by, added, back=back))
    entering, last = walked(whole, left, state, back=back)
    states = _walked(by, added, entering.flatten(0, 1), back=back)
    return states.unflatten(0, (N, blocks)).flatten(1, 2)[:, :n], last


def _block(n: int) -> int:
    """Chunks of a block: about the square root of all, the number that leaves the last block fullest."""
    root = math.isqrt(n)
    return min(range(max(root, 1), 2 * root + 1), key=lambda size: (-n % size, size))


def _cut(x: Tensor, blocks: int, size: int, diagonal: float) -> Tensor:
    """[N, n, ...] to [N * blocks, size, ...], filled up with chunks that leave the state as it is."""
    more = blocks * size - x.shape[1]
    if more:
        rest = x.new_zeros(x.shape[0], more, *x.shape[2:])
        if x.shape[-1] == x.shape[-2]:
            rest.diagonal(dim1=-2, dim2=-1).fill_(diagonal)
        else:
            rest.fill_(diagonal)
        x = torch.cat([x, rest], 1)
    return x.reshape(x.shape[0] * blocks, size, *x.shape[2:])


def _order(n: int, *, back: bool) -> list[int]:
    return list(range(n - 1, -1, -1) if back else range(n))


def _through(by: Tensor, state: Tensor, added: Tensor) -> Tensor:
    """Add A S to B, in place: by factors [R, K or 1, 1], or matrices [R, K, K]; states [R, K, V]."""
    return added.addcmul_(by, state) if by.shape[-1] == 1 else added.baddbmm_(by, state)


def _each(by: Tensor, *, back: bool) -> Sequence[Tensor]:
    return (by.mT if back and by.shape[-1] > 1 else by).unbind(1)


def _walked(by: Tensor, added: Tensor, state: Tensor, *, back: bool) -> Tensor:
    """States that enter chunks, one after the other."""
    order = _order(added.shape[1], back=back)
    states, matrices = torch.empty_like(added), _each(by, back=back)
    each = states.unbind(1)
    each[order[0]].copy_(state)
    if len(order) > 1:
        later, earlier = (states[:, :-1], added[:, 1:]) if back else (states[:, 1:], added[:, :-1])
        later.copy_(earlier)
        for c, following in pairwise(order):
            _through(matrices[c], each[c], each[following])
    return states


def _composed(by: Tensor, added: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
    """What all chunks of a block do to a state, [R, K or 1, 1] or [R, K, K], and what they leave of none, [R, K, V]."""
    first, *others = _order(added.shape[1], back=back)
    matrices, K = _each(by, back=back), by.shape[-1]
    if K == 1:
        left = added[:, first].clone()
        for c in others:
            left = torch.addcmul(added[:, c], matrices[c], left)
        return by.prod(1), left
    both = torch.nn.functional.pad(added, (K, 0))
    each = both.unbind(1)
    each[first][..., :K] = matrices[first]
    reached = first
    for c in others:
        _through(matrices[c], each[reached], each[c])
        reached = c
    whole = each[reached][..., :K]
    return (whole.mT if back else whole), each[reached][..., K:]


def _matrices(kept: Tensor, writers: Tensor | None, readers: Tensor | None) -> Tensor:
    """What chunks do to a state: the decay, and the low-rank term; where there is none, factors."""
    if writers is None or readers is None:
        return kept
    found = writers @ readers
    found.diagonal(dim1=-2, dim2=-1).add_(kept[..., 0])
    return found


class _Entering(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kept: Tensor, writers: Tensor | None, readers: Tensor | None, added: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        states, last = walked(_matrices(kept, writers, readers), added, state)
        ctx.save_for_backward(kept, writers, readers, states)
        return states, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor, Tensor]:
        kept, writers, readers, states = ctx.saved_tensors
        by = _matrices(kept, writers, readers)
        leaving, first = walked(by, grads[0], grads[1], back=True)  # cotangents of the states that leave the chunks
        dkept = None
        if ctx.needs_input_grad[0]:
            dkept = (leaving * states).sum(-1 if kept.shape[-2] > 1 else (-2, -1)).reshape(kept.shape)
        if writers is None or readers is None:
            return dkept, None, None, leaving, first
        dreaders = (writers.mT @ leaving) @ states.mT
        return dkept, leaving @ (readers @ states).mT, dreaders, leaving, first


def entering(
    kept: Tensor, added: Tensor, state: Tensor, writers: Tensor | None = None, readers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """States that enter chunks [N, n, K, V], and the last that leaves [N, K, V].

    Args:
        kept: decays over a chunk [N, n, K, 1] or [N, n, 1, 1].
        added: what a chunk adds [N, n, K, V].
        state: that enters the first [N, K, V].
        writers: with `readers`, what a low-rank term adds of the state: writers (readers S); [N, n, K, C].
        readers: [N, n, C, K].
    """
    found: tuple[Tensor, Tensor] = _Entering.apply(kept, writers, readers, added, state)  # type: ignore[no-untyped-call]
    return found
