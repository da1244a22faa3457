"""Where an examination stands: what one process tells another between two laws, and before the record is made."""

from dataclasses import dataclass

from linverify.crossing import Crossed
from linverify.insight import Insight


@dataclass(frozen=True, slots=True)
class Standing:
    """What the laws asked so far say about the next one.

    Attributes:
        broken: a required law is broken.
        gradients: no law has found that o carries no gradient.
    """

    broken: bool = False
    gradients: bool = True

    def also(self, other: "Standing") -> "Standing":
        """Return what both say."""
        return Standing(self.broken or other.broken, self.gradients and other.gradients)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What several processes have found out besides the laws' verdicts."""

    insight: Insight
    crossed: Crossed
