"""Softmax attention in a Pre-LN block: what the others are compared with."""

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form


class Softmax(PreNorm):
    """Causal softmax attention."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        """Take the width and the number of heads."""
        super().__init__(dim, Mixer(dim, heads, form("naive", "softmax_attention")))
