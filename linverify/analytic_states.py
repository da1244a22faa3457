"""States from chunk to chunk, and what every use of them needs: for `linverify.analytic_passes`."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

# Steps whose decays between one another are formed at once.
_BLOCK = 32


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """States, or their cotangents, at the boundary of each chunk.

    Attributes:
        stored: [N, n, K, V].
        spread: their variances.
        last: variance of the one that leaves the last chunk [N, K, V]; of cotangents, the first.
    """

    stored: Tensor
    spread: Tensor
    last: Tensor
    squares: Tensor = field(init=False)
    energy: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Take the squares, and those with their variances, once."""
        object.__setattr__(self, "squares", self.stored.square())
        object.__setattr__(self, "energy", self.squares + self.spread)


def accumulated(kept: Tensor | None, start: Tensor, added: Tensor) -> Tensor:
    """X <- exp(kept) X + added, step by step: [N, n + 1, K, V], the start first.

    Args:
        kept: [N, n, K or 1], logarithms; None keeps everything.
        start: [N, K, V].
        added: [N, n, K, V].
    """
    x = torch.cat([start[:, None], added], 1)
    return x.cumsum(1) if kept is None else _accumulated(pad(kept, (0, 0, 1, 0)), x)


def _accumulated(kept: Tensor, added: Tensor) -> Tensor:
    """The same from nothing: [N, n, K, V].

    Block by block, all steps of a block in one product with the decays between any two of them, and so for what the blocks
    leave: a GPU would wait for the calls of a loop.
    """
    n, size = added.shape[1], min(_BLOCK, added.shape[1])
    blocks = -(-n // size)
    until, x = _blocks(kept, blocks, size).cumsum(2), _blocks(added, blocks, size)
    gap = until[:, :, :, None] - until[:, :, None]
    later = torch.ones(size, size, dtype=torch.bool, device=gap.device).triu_(1)
    decay = gap.masked_fill_(later[..., None], -torch.inf).exp_()  # masked before exp: no 0 * inf
    found: Tensor = torch.einsum("nbijk,nbjkv->nbikv", decay, x)
    if blocks > 1:
        left = _accumulated(until[:, :-1, -1], found[:, :-1, -1])
        found[:, 1:].addcmul_(until[:, 1:].exp()[..., None], left[:, :, None])
    return found.flatten(1, 2)[:, :n]


def _blocks(x: Tensor, blocks: int, size: int) -> Tensor:
    """[N, n, ...] to [N, blocks, size, ...], zeros at the end."""
    more = blocks * size - x.shape[1]
    found: Tensor = (pad(x, (0, 0) * (x.dim() - 2) + (0, more)) if more else x).unflatten(1, (blocks, size))
    return found
