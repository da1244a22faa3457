"""Two rules of judgement: for a kernel of which nothing is known, and for one whose recipe is declared.

An unknown kernel is held to the widest of several recipes with few realisations each, and the line lies at three times the
largest value that realisations of correct kernels reach. A declared recipe is the only one: more realisations of it set the
scale, they leave exact values exact, and the line lies at 2.5. There it lies for an unknown kernel, too, where what is near the
line is held to as many realisations: the sets of four seeds together. Few realisations tell a scale badly, so what is right may
stand out where they happened to be small, and the line must leave room for it; four times as many tell it better.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """How many realisations a recipe gets, and where the line is.

    Attributes:
        line: largest ratio of a statistic to its null.
        near: a ratio beyond this needs fresh realisations.
        train: realisations a recipe that set the scale.
        held: realisations that show what chance does.
        careful: values that rounding would leave alone are not perturbed.
        together: the line for the realisations of all seeds together.
    """

    line: float
    near: float
    train: int
    held: int
    careful: bool
    together: float

    @property
    def marginal(self) -> float:
        """A ratio for all seeds together that is beyond this is near the line, as `near` is of `line`."""
        return self.together * self.near / self.line


GENERIC = Rule(3.0, 2.5, 2, 1, careful=False, together=2.5)
DECLARED = Rule(2.5, 2.5 * 2.5 / 3.0, 8, 2, careful=True, together=2.5)
