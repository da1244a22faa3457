"""Slips of decays in float32: relative variances of exp(G_i - G_j) where G is a running sum of log gates.

A sum of gates is rounded where it is formed and where it is used, each time by as much as its size, so a decay between two
tokens is off by the sums that it is the difference of, and by what the sum lost between them (the model: `linverify.noise`).
Chunks are at most 128 tokens long there, and begin at multiples of 64. That a total may be a sum of its own, and that equal
gates err alike, is left to the realisations: what is here is the least that a correct kernel may err.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from linverify.reference.batched import cut

LONGEST = 128
# A running sum's roundings count one and a half each; each of the two uses of a sum adds one.
_KEPT = 1.5**2


@dataclass(frozen=True, slots=True, eq=False)
class Slips:
    """Relative variances, chunk by chunk; D is 1 or the number of channels, M counts the chunks of all rows.

    Attributes:
        until: of decays from the chunk's beginning to a token, its own included [M, C, D], and between pairs of tokens
            [M, C, C, D].
        before: the same, the token's own decay left out.
        written: from a token to the end of its chunk [M, C, D].
        kept: of a whole chunk [N, n, D, 1].
    """

    until: tuple[Tensor, Tensor]
    before: tuple[Tensor, Tensor]
    written: Tensor
    kept: Tensor

    def read(self, *, decayed: bool) -> tuple[Tensor, Tensor]:
        """Of a read after (decayed) or before the decay of its token."""
        return self.until if decayed else self.before


def slips(log_decay: Tensor, chunk: int, unit: float) -> Slips:
    """Slips of rows of log gates.

    Args:
        log_decay: [N, L, D].
        chunk: tokens of a chunk here; those of a kernel may be longer.
        unit: variance to measure in, over that of one rounding in float32.
    """
    squares = _squares(log_decay) / unit
    now, earlier = cut(squares, chunk), cut(pad(squares, (0, 0, 1, 0))[:, :-1], chunk)
    lost = _KEPT * now.cumsum(1)
    reader, writer = now + lost, now - lost
    early = earlier + lost - _KEPT * now
    end = lost[:, -1:]

    def pairs(x: Tensor) -> Tensor:
        return x[:, :, None] + writer[:, None]

    return Slips(
        (reader, pairs(reader)), (early, pairs(early)), writer + end, end.mT.unflatten(0, (len(log_decay), -1))
    )


def _squares(log_decay: Tensor) -> Tensor:
    """Largest square of the sum that a token has in any chunk."""
    total = pad(log_decay.cumsum(1), (0, 0, 1, 0))
    token = torch.arange(log_decay.shape[1], device=log_decay.device)
    found = []
    for lead in (0, LONGEST // 2):
        first = ((token + lead) // LONGEST * LONGEST - lead).clamp(min=0)
        found.append((total[:, 1:] - total[:, first]).square())
    return torch.maximum(*found)
