"""The Pre-LN block around a mixer: x + mixer(LN x), then the same with two linear maps and a GELU between them.

Source: Xiong et al. 2020, arXiv:2002.04745 (Pre-LN).
"""

from torch import Tensor, nn
from torch.nn.functional import gelu


class PreNorm(nn.Module):
    """A block [B, T, D] to [B, T, D]."""

    def __init__(self, dim: int, mixer: nn.Module, *, hidden: int = 4) -> None:
        """Take the width, the mixer, and how many times wider the feed-forward layer is."""
        super().__init__()
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer = mixer
        self.up, self.down = nn.Linear(dim, hidden * dim), nn.Linear(hidden * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels."""
        x = x + self.mixer(self.first(x))
        found: Tensor = x + self.down(gelu(self.up(self.second(x))))
        return found
