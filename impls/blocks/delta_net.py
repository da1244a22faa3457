"""DeltaNet in a Pre-LN block (Yang et al. 2024, arXiv:2406.06484): unit queries and keys, strengths in (0, 1)."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from linverify.impls.blocks._block import PreNorm
from linverify.impls.blocks._mixer import Mixer, form


class _Delta(Mixer):
    """A mixer with write strengths."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, form("chunkwise", "delta_rule"))
        self.strength = nn.Linear(dim, heads, bias=False)

    def operands(self, x: Tensor) -> dict[str, Tensor]:
        """Return q and k of unit length, and v."""
        found = super().operands(x)
        return {**found, **{n: normalize(silu(found[n]), dim=-1) for n in ("q", "k")}}

    def more(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return beta [B, T, H]."""
        return {"beta": self.strength(x).sigmoid()}


class DeltaNet(PreNorm):
    """Linear attention that corrects what it has stored."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        """Take the width and the number of heads."""
        super().__init__(dim, _Delta(dim, heads))
