"""What meets the state of a recurrence, reads and writes, with the products that many passes need: for `linverify.analytic`.

A product is formed when it is first asked for, and once: on a GPU each costs a call, whatever its size. M counts the chunks of
all rows.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)  # without slots: what is formed once is kept in the instance
class Side:
    """Either of them.

    Attributes:
        key: [M, C, K]: what meets the state.
        decay: [M, C, K or 1], of a read since the chunk began, of a write to its end; None where nothing decays.
    """

    key: Tensor
    decay: Tensor | None

    @property
    def apart(self) -> bool:
        """Whether channels of a key decay apart."""
        return self.decay is not None and self.decay.shape[-1] > 1

    @cached_property
    def key_squares(self) -> Tensor:
        """The key squared."""
        return self.key.square()

    @cached_property
    def decayed(self) -> Tensor:
        """The key with its decay."""
        return self.key if self.decay is None else self.key * self.decay

    @cached_property
    def decayed_squares(self) -> Tensor:
        """The same squared."""
        return self.key_squares if self.decay is None else self.decayed.square()

    @cached_property
    def _decay_squares(self) -> Tensor | None:
        return None if self.decay is None else self.decay.square()

    def fading(self, x: Tensor) -> Tensor:
        """Variances with the decay squared."""
        return x if self._decay_squares is None else self._decay_squares * x


@dataclass(frozen=True, eq=False)
class Read(Side):
    """What reads the state.

    Attributes:
        pairs: [M, C, C, K or 1]: decay between a write and this read, 0 where it does not see the write.
        cotangent: [M, C, V], or None where no gradient comes back.
        low: whether a low-rank term reads here.
        slips: relative variances of `decay` and `pairs`, the same shapes; None where they do not matter.
        spread: variance of the cotangent itself; None where it has none of its own.
    """

    pairs: Tensor
    cotangent: Tensor | None
    low: bool = False
    slips: tuple[Tensor, Tensor] | None = None
    spread: Tensor | None = None

    @property
    def slip(self) -> Tensor | None:
        """Relative variance of the decay since the chunk began."""
        return None if self.slips is None else self.slips[0]

    @cached_property
    def pair_squares(self) -> Tensor:
        """The decays between writes and this read, squared."""
        return self.pairs.square()

    @cached_property
    def squares(self) -> Tensor:
        """The cotangent squared."""
        assert self.cotangent is not None
        return self.cotangent.square()

    @cached_property
    def energy(self) -> Tensor:
        """The cotangent squared, with its own variance."""
        return self.squares if self.spread is None else self.squares + self.spread


@dataclass(frozen=True, eq=False)
class Write(Side):
    """What is written.

    Attributes:
        value: [M, C, V].
        solved: whether the value was solved for; then it is rounded before it is used.
        slip: relative variance of `decay`; None where it does not matter.
        spread: variance of the value itself; None where it has none of its own.
    """

    value: Tensor
    solved: bool
    slip: Tensor | None = None
    spread: Tensor | None = None

    @cached_property
    def squares(self) -> Tensor:
        """The value squared."""
        return self.value.square()

    @cached_property
    def energy(self) -> Tensor:
        """The value squared, with its own variance."""
        return self.squares if self.spread is None else self.squares + self.spread
