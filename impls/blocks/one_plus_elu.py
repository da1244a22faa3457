"""Normalised linear attention over 1 + elu in a Pre-LN block (Katharopoulos et al. 2020, arXiv:2006.16236)."""

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form


class OnePlusElu(PreNorm):
    """Linear attention divided by the sum of its weights."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        """Take the width and the number of heads."""
        super().__init__(dim, Mixer(dim, heads, form("naive", "normalized_linear_attention")))
