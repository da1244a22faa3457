"""Gated linear attention in a Pre-LN block (Yang et al. 2023, arXiv:2312.06635): a gate a channel, from a low-rank map."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form

# The log gate is divided by 16, so that gates begin near one; section 4.4 of the paper.
_SLOWER = 16.0


class _Gated(Mixer):
    """A mixer with log gates."""

    def __init__(self, dim: int, heads: int, rank: int) -> None:
        super().__init__(dim, heads, form("chunkwise", "gla"))
        self.gate = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))

    def more(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the log gates [B, T, H, K]."""
        return {"g": logsigmoid(self.gate(x)).unflatten(-1, (self.heads, -1)) / _SLOWER}


class GLA(PreNorm):
    """Linear attention with a decay for every channel and token."""

    def __init__(self, dim: int, heads: int = 4, rank: int = 16) -> None:
        """Take the width, the number of heads, and the rank of the gate's map."""
        super().__init__(dim, _Gated(dim, heads, rank))
