"""DiagAttention in a Pre-LN block: softmax within blocks of tokens (Qin et al. 2022, arXiv:2210.10340)."""

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form


class DiagAttention(PreNorm):
    """Softmax attention within blocks of 16 tokens."""

    def __init__(self, dim: int, heads: int = 4, block: int = 16) -> None:
        """Take the width and the number of heads, and the number of tokens in a block."""
        super().__init__(dim, Mixer(dim, heads, form("naive", "diag_attention"), block=block))
