"""States at the boundaries of chunks, by blocks of chunks: what a loop over all chunks gives, in few large operations.

A chunk takes a state S to A S + B. Within a block of chunks all compositions of that are formed at once for all blocks; from
block to block the same is done again (Blelloch 1990, Prefix sums and their applications, section 1.4). The cotangents take the
same way back with A transposed, and what they meet on it are the states: the adjoint is written out, and nothing that the
compositions made is kept for it. Worth its arithmetic on a GPU, where a loop waits for every launch.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Up to so many chunks a loop has as few launches.
_FEW = 6
# Bytes of the tensors that blocks make, beyond which a loop is as good: its operations are large.
_LARGEST = 2**32


def _through(by: Tensor, state: Tensor, added: Tensor, out: Tensor | None = None) -> Tensor:
    """A S + B: by factors [R, K or 1, 1], or matrices [R, K, K]; states [R, K, V]."""
    if by.shape[-1] == 1:
        return torch.addcmul(added, by, state, out=out)
    return torch.baddbmm(added, by, state, out=out)


def walked(by: Tensor, added: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States that enter chunks [N, n, K, V], and the last that leaves [N, K, V], without gradients.

    Args:
        by: what chunks do to a state: factors [N, n, K or 1, 1], or matrices [N, n, K, K].
        added: what they add [N, n, K, V].
        state: that enters the first [N, K, V].
    """
    N, n, K, V = added.shape
    wide = 1 if by.shape[-1] == 1 else K
    room = 3 * added.element_size() * N * n * K * (wide + V) <= _LARGEST
    if n <= _FEW or not room:
        reached = [state]
        for c in range(n):
            reached.append(_through(by[:, c], reached[-1], added[:, c]))
        return torch.stack(reached[:-1], 1), reached[-1]
    size = math.isqrt(n - 1) + 1
    blocks = -(-n // size)
    by, added = _cut(by, blocks, size, 1.0), _cut(added, blocks, size, 0.0)
    made, far = _composed(by, added)
    own = (N, blocks)
    entering, last = walked(far[:, -1].unflatten(0, own), made[:, -1].unflatten(0, own), state)
    here = entering.flatten(0, 1)[:, None]
    before = far[:, :-1] * here if wide == 1 else far[:, :-1] @ here
    states = torch.cat([here, before.add_(made[:, :-1])], 1)
    return states.unflatten(0, own).flatten(1, 2)[:, :n], last


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


def _composed(by: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of all writes after each chunk of a block, and what all chunks so far do to a state."""
    K = added.shape[2]
    if by.shape[-1] == 1:
        made = torch.empty_like(added)
        made[:, 0] = added[:, 0]
        for c in range(1, added.shape[1]):
            _through(by[:, c], made[:, c - 1], added[:, c], out=made[:, c])
        return made, by.cumprod(1)
    both = torch.empty(*added.shape[:3], K + added.shape[-1], dtype=added.dtype, device=added.device)
    both[:, :, :, K:] = added
    both[:, 1:, :, :K] = 0.0
    both[:, 0, :, :K] = by[:, 0]
    for c in range(1, added.shape[1]):
        both[:, c].baddbmm_(by[:, c], both[:, c - 1])
    return both[..., K:], both[..., :K]


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
        return states, last.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        kept, writers, readers, states = ctx.saved_tensors
        by = _matrices(kept, writers, readers)
        by = by if by.shape[-1] == 1 else by.mT
        back, first = walked(by.flip(1), grads[0].flip(1), grads[1])
        leaving = back.flip(1)  # cotangents of the states that leave the chunks
        dkept = (leaving * states).sum(-1, keepdim=True)
        dkept = dkept if kept.shape[-2] > 1 else dkept.sum(-2, keepdim=True)
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
