"""NormFormer: a Pre-LN softmax block with three more operations, and a learned scale of the residual.

    a = LN_a(concat_h(gamma_h head_h(LN_1 x)) W_O);   x' = x + a;   y = lambda * x' + W_2 LN_f(gelu(W_1 LN_2 x'))

Without any of them (gamma = 1, LN_a, LN_f and lambda left out) it is the Pre-LN block.

Source: Shleifer, Weston, Ott 2021, arXiv:2110.09456, section 3; the name is close to NormAttention's, the mechanism is not.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from linverify.impls.blocks._mixer import Mixer, form

OPERATIONS = ("head_scale", "attention_norm", "feed_norm")
RESIDUAL_SCALE = "residual_scale"
"""Learned elementwise scale of the second residual (ResScale in the paper, for small models)."""


class _Scaled(Mixer):
    """A mixer whose heads have a learned factor each, 1 at first."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads, form("naive", "softmax_attention"))
        self.gamma = nn.Parameter(torch.ones(heads))

    def read(self, x: Tensor) -> Tensor:
        """Return the heads' outputs, scaled."""
        return super().read(x) * self.gamma[:, None]


class NormFormer(nn.Module):
    """A block [B, T, D] to [B, T, D]."""

    def __init__(self, dim: int, heads: int = 4, operations: tuple[str, ...] = OPERATIONS, hidden: int = 4) -> None:
        """Take the width, the heads, which operations there are, and how many times wider the feed-forward layer is.

        Raises:
            ValueError: there is no such operation.
        """
        super().__init__()
        known = (*OPERATIONS, RESIDUAL_SCALE)
        if unknown := [o for o in operations if o not in known]:
            raise ValueError(f"expected operations among {', '.join(known)}, got {unknown[0]!r}")
        has = set(operations)
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        scaled = "head_scale" in has
        self.mixer = _Scaled(dim, heads) if scaled else Mixer(dim, heads, form("naive", "softmax_attention"))
        self.after = nn.LayerNorm(dim) if "attention_norm" in has else nn.Identity()
        self.inner = nn.LayerNorm(hidden * dim) if "feed_norm" in has else nn.Identity()
        self.up, self.down = nn.Linear(dim, hidden * dim), nn.Linear(hidden * dim, dim)
        self.residual = nn.Parameter(torch.ones(dim)) if RESIDUAL_SCALE in has else None

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        x = x + self.after(self.mixer(self.first(x)))
        kept = x if self.residual is None else x * self.residual
        found: Tensor = kept + self.down(self.inner(gelu(self.up(self.second(x)))))
        return found
