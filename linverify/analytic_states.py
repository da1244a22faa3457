"""States from chunk to chunk, and what every use of them needs: for `linverify.analytic_passes`."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from linverify.analytic_sides import Side

# Steps whose decays between one another are formed at once.
_BLOCK = 32
# Devices on which a call costs less than going through all steps more than once.
_LOOPING = ("cpu",)


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """States, or their cotangents, at the boundary of each chunk.

    Attributes:
        stored: [M, K, V], of the chunks of all rows.
        spread: their variances.
        last: variance of the one that leaves the last chunk [N, K, V]; of cotangents, the first.
    """

    stored: Tensor
    spread: Tensor
    last: Tensor
    squares: Tensor = field(init=False)
    energy: Tensor = field(init=False)
    _met: dict[Side, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Take the squares, and those with their variances, once."""
        object.__setattr__(self, "squares", self.stored.square())
        object.__setattr__(self, "energy", self.squares + self.spread)

    def met(self, of: Side) -> Tensor:
        """What decayed keys read of what is stored, [M, C, V]; computed once."""
        if of not in self._met:
            self._met[of] = torch.bmm(of.decayed, self.stored)
        return self._met[of]


def accumulated(kept: Tensor | None, start: Tensor, added: Tensor, *, back: bool = False) -> Tensor:
    """X <- exp(kept) X + added, step by step: [N, n + 1, K, V], the start first; or from the last step back, the start last.

    Args:
        kept: [N, n, K or 1], logarithms; None keeps everything.
        start: [N, K, V].
        added: [N, n, K, V].
        back: which of the two.
    """
    if added.device.type in _LOOPING:
        return _stepped(kept, start, added, back=back)
    if back:
        return accumulated(None if kept is None else kept.flip(1), start, added.flip(1)).flip(1)
    x = torch.cat([start[:, None], added], 1)
    return x.cumsum(1) if kept is None else _accumulated(pad(kept, (0, 0, 1, 0)), x)


def _stepped(kept: Tensor | None, start: Tensor, added: Tensor, *, back: bool) -> Tensor:
    """The same in a loop."""
    n = added.shape[1]
    found = added.new_empty(added.shape[0], n + 1, *added.shape[2:])
    found[:, n if back else 0] = start
    (found[:, :n] if back else found[:, 1:]).copy_(added)
    decay = None if kept is None else kept.exp()[..., None]
    for i in reversed(range(n)) if back else range(n):
        here, before = (found[:, i], found[:, i + 1]) if back else (found[:, i + 1], found[:, i])
        if decay is None:
            here.add_(before)
        else:
            here.addcmul_(decay[:, i], before)
    return found


def _accumulated(kept: Tensor, added: Tensor) -> Tensor:
    """The same from nothing, forwards: [N, n, K, V].

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
