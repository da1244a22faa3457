"""NormAttention in a Pre-LN block: a norm in the place of the divisor (Qin et al. 2022, arXiv:2210.10340)."""

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form


class NormAttention(PreNorm):
    """Linear attention whose outputs are normalised as vectors."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        """Take the width and the number of heads."""
        super().__init__(dim, Mixer(dim, heads, form("naive", "norm_attention")))
