"""What realisations of a correct kernel carry from one segment of a long sequence to the next.

A realisation's own state enters a segment, with every error that it has gathered since the sequence began, and its own
cotangent comes back from the segment after. So errors reach as far as they do in a kernel that runs the whole, and decay as
the recurrence lets them; nothing about them needs to be assumed.
"""

from dataclasses import dataclass, field

from torch import Tensor


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
        state: that enters the segment, [copies * N, K, V]; None at the beginning of the sequence.
        cotangent: of the state that leaves it, the same shape; None at its end.
        later: sum over later tokens that a gate gradient taken from the end begins with, [copies * N, 1, K].
        shared: gradients that all tokens share, one mapping for each form of the gate gradient.
    """

    state: Tensor | None = None
    cotangent: Tensor | None = None
    later: Tensor | None = None
    shared: list[dict[str, Shared]] = field(default_factory=list)

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
