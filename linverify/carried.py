"""What realisations of a correct kernel carry from one segment of a long sequence to the next.

A realisation's own state enters a segment, with every error that it has gathered since the sequence began, and its own
cotangent comes back from the segment after. So errors reach as far as they do in a kernel that runs the whole, and decay as
the recurrence lets them; nothing about them needs to be assumed.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from linverify.pieces import Grid


@dataclass(slots=True, eq=False)
class Shared:
    """A gradient that all tokens share, summed over the segments of a long sequence.

    Attributes:
        total: sum of the segments' parts, of every realisation.
        energy: of what was summed: the variance of one accumulator's walk follows from it.
        terms: how many terms one accumulator took.
    """

    total: Tensor
    energy: Tensor
    terms: float


@dataclass(slots=True, eq=False)
class Carried:
    """What the realisations of one segment get from its neighbours; each run backward leaves it for the segment before.

    Attributes:
        grid: how the rows of the segment's pieces are counted.
        state: that enters each piece, [copies * N, K, V]; None where it is the exact one.
        cotangent: of the state that leaves it, the same shape; None where it is the exact one.
        later: sum over the tokens after the segment, with which a gate gradient taken from the end begins, [copies *
            sequences * heads, 1, K]; None where no token is left.
        shared: gradients that all tokens share, one mapping for each form of the gate gradient.
    """

    grid: Grid
    state: Tensor | None = None
    cotangent: Tensor | None = None
    later: Tensor | None = None
    shared: list[dict[str, Shared]] = field(default_factory=list)

    def after(self, own: Tensor, end: Tensor) -> Tensor:
        """Return the sum over all tokens after each piece, [copies * N, 1, K]; `later` becomes that of the segment before.

        Args:
            own: sum over the tokens of each piece, the same shape.
            end: what the state that leaves each piece adds; taken at the end of the sequence alone.
        """
        parts, tails = self.grid.apart(own), self.grid.apart(end)
        last = tails[:, :, -1] if self.later is None else self.later.reshape(tails[:, :, -1].shape)
        following = torch.cat([parts[:, :, 1:], last[:, :, None]], 2)
        behind = following.flip(2).cumsum(2).flip(2)
        self.later = (behind[:, :, 0] + parts[:, :, 0]).reshape(-1, *own.shape[1:])
        return self.grid.flat(behind)

    def sums(self, forms: int) -> tuple[dict[str, Shared], ...]:
        """Return where the shared gradients of each of so many forms of the gate gradient are summed."""
        self.shared = self.shared or [{} for _ in range(forms)]
        return tuple(self.shared)


def add(into: dict[str, Shared], name: str, part: Shared) -> None:
    """Add a segment's part of a shared gradient."""
    known = into.get(name)
    into[name] = (
        part
        if known is None
        else Shared(known.total + part.total, known.energy + part.energy, known.terms + part.terms)
    )
