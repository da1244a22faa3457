"""States at the boundaries of chunks, by blocks of chunks: what a loop over all chunks gives, in few large operations.

A chunk takes a state S to A S + B. Within a block of chunks all compositions of that are formed at once for all blocks; from
block to block the same is done again (Blelloch 1990, Prefix sums and their applications, section 1.4). Where A is a decay, the
compositions are sums of logarithms, each from its own beginning: a difference of longer sums would lose digits. Worth its
arithmetic on a GPU, where a loop waits for every launch.
"""

import torch
from torch import Tensor

BLOCK = 16
# Bytes of the tensors that a scan by blocks makes, beyond which a loop is as good: its operations are large.
_LARGEST = 2**32


def fits(states: Tensor, low_rank: int) -> bool:
    """Whether there is room: states [N, n, K, V], and columns of the transitions of a low-rank term (0 for none)."""
    return 6 * states.element_size() * states.numel() // states.shape[-1] * (states.shape[-1] + low_rank) <= _LARGEST


def decayed(totals: Tensor | None, writes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States that enter chunks [N, n, K, V], and the last that leaves [N, K, V].

    Args:
        totals: log decays over a chunk [N, n, K] or [N, n, 1]; None where nothing decays.
        writes: what a chunk adds [N, n, K, V].
        state: that enters the first [N, K, V].
    """
    N, n = writes.shape[:2]
    if n <= BLOCK:
        after = _written(totals, writes)
        kept = state[:, None] if totals is None else totals.cumsum(1).exp()[..., None] * state[:, None]
        after = after + kept
        return torch.cat([state[:, None], after[:, :-1]], 1), after[:, -1]
    blocks = -(-n // BLOCK)
    inside = _cut(writes, blocks)
    own = None if totals is None else _cut(totals, blocks)
    after = _written(own, inside)
    between = None if own is None else own.sum(1).unflatten(0, (N, blocks))
    entering, last = decayed(between, after[:, -1].unflatten(0, (N, blocks)), state)
    here = entering.flatten(0, 1)[:, None]
    before = here if own is None else _shifted(own).cumsum(1).exp()[..., None] * here
    return (_shifted(after) + before).unflatten(0, (N, blocks)).flatten(1, 2)[:, :n], last


def _shifted(x: Tensor) -> Tensor:
    """[N, n, ...] one place later, zero first."""
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def _cut(x: Tensor, blocks: int) -> Tensor:
    """[N, n, ...] to [N * blocks, BLOCK, ...], filled up with zeros: chunks that leave the state as it is."""
    more = blocks * BLOCK - x.shape[1]
    if more:
        x = torch.cat([x, x.new_zeros(x.shape[0], more, *x.shape[2:])], 1)
    return x.unflatten(1, (blocks, BLOCK)).flatten(0, 1)


def _written(totals: Tensor | None, writes: Tensor) -> Tensor:
    """What is left of all writes after each chunk [R, m, K, V], from nothing."""
    if totals is None:
        return writes.cumsum(1)
    R, m, K, V = writes.shape
    index = torch.arange(m, device=writes.device)
    later = index[:, None] > index[None, :]
    # from the end of chunk j to the end of chunk c: [R, c, j, K]
    gap = torch.where(later[..., None], totals[:, :, None], 0.0).cumsum(1)
    decay = torch.where((index[:, None] >= index[None, :])[..., None], gap, -torch.inf).exp()
    if totals.shape[-1] == 1:
        return (decay[..., 0] @ writes.reshape(R, m, K * V)).reshape(R, m, K, V)
    return (decay.permute(0, 3, 1, 2) @ writes.transpose(1, 2)).transpose(1, 2)


def affine(through: Tensor, writes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same where a chunk takes the state through a matrix.

    Args:
        through: transitions [N, n, K, K].
        writes: what a chunk adds [N, n, K, V].
        state: that enters the first [N, K, V].
    """
    N, n, K, _ = writes.shape
    if n <= BLOCK:
        states = [state]
        for a, b in zip(through.unbind(1), writes.unbind(1), strict=True):
            states.append(torch.baddbmm(b, a, states[-1]))
        return torch.stack(states[:-1], 1), states[-1]
    blocks = -(-n // BLOCK)
    more = blocks * BLOCK - n
    if more:
        eye = torch.eye(K, dtype=through.dtype, device=through.device).expand(N, more, K, K)
        through = torch.cat([through, eye], 1)
    own = through.unflatten(1, (blocks, BLOCK)).flatten(0, 1)
    inside = _cut(writes, blocks)
    added = torch.cat([torch.zeros_like(own), inside], -1).unbind(1)
    each = own.unbind(1)
    composed = [torch.cat([own[:, 0], inside[:, 0]], -1)]  # [A | B] of all chunks so far
    for a, b in zip(each[1:], added[1:], strict=True):
        composed.append(torch.baddbmm(b, a, composed[-1]))
    whole = composed[-1].unflatten(0, (N, blocks))
    entering, last = affine(whole[..., :K], whole[..., K:], state)
    here = entering.flatten(0, 1)[:, None]
    so_far = torch.stack(composed[:-1], 1)
    states = torch.cat([here, so_far[..., :K] @ here + so_far[..., K:]], 1)
    return states.unflatten(0, (N, blocks)).flatten(1, 2)[:, :n], last
