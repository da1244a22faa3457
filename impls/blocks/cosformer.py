"""cosFormer in a Pre-LN block (Qin et al. 2022, arXiv:2202.08791)."""

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form


class CosFormer(PreNorm):
    """Rectified linear attention, reweighted by the cosine of the distance."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        """Take the width and the number of heads."""
        super().__init__(dim, Mixer(dim, heads, form("naive", "cosformer")))
