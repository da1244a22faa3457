"""Performer in a Pre-LN block (Choromanski et al. 2020, arXiv:2009.14794); its random features are drawn once and kept."""

from collections.abc import Mapping

from torch import Tensor

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, drawn, form
from linverify.registry import operators


class _Features(Mixer):
    """A mixer with the projection of the random features."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, form("naive", "performer"))
        operator = operators()["performer"]
        declared = operator.input("projection")
        K = dim // heads
        assert declared.draw is not None
        self.register_buffer("projection", drawn((operator.own_axes["F"]({"K": K}), K), declared.draw))

    def more(self, _: Tensor) -> Mapping[str, Tensor]:
        """Return the projection [F, K]."""
        found = self.projection
        assert isinstance(found, Tensor)
        return {"projection": found}


class Performer(PreNorm):
    """Linear attention over positive random features."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        """Take the width and the number of heads."""
        super().__init__(dim, _Features(dim, heads))
