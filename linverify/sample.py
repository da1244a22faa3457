"""Sampling: tensors of one region, from a seed.

Every tensor has a generator of its own, seeded by the case's seed and the tensor's name, so that no draw depends on another
or on torch's global state. Values are drawn in float64 and rounded to the dtype in which the target will see them.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.regime import INTEGER_REGIMES

DENSE_UP_TO = 48
SPARSE_UP_TO = 300
_RWKV7_BOUND = math.exp(-0.5)  # gates of RWKV-7 lie above -exp(-1/2): Peng et al. 2025, arXiv:2503.14456, section 4
_OFF_NORM = (0.3, 1.4)
_OFF_NORM_LOW_RANK = (0.3, 1.0)  # a decayed state leaves less room before the removal overshoots


def generator(seed: int, label: str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the label alone."""
    digest = hashlib.sha256(f"{seed}/{label}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the tensors of one region.

    Attributes:
        seed: of the case.
        regime: region of the operands.
        gate: region of the gates.
        T: number of tokens; decides how dense the exact regions are.
    """

    seed: int
    regime: str
    gate: str
    T: int

    @property
    def exact(self) -> bool:
        """True in the regions in which nothing rounds."""
        return self.regime in INTEGER_REGIMES

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float64."""
        return torch.randn(tuple(shape), generator=generator(self.seed, name), dtype=torch.float64)

    def uniform(self, name: str, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers between low and high, float64."""
        unit = torch.rand(tuple(shape), generator=generator(self.seed, name), dtype=torch.float64)
        return low + (high - low) * unit

    def integers(self, name: str, shape: Sequence[int], largest: int = 1) -> Tensor:
        """Whole numbers up to `largest` in size; three quarters of them zero in long cases, so that sums stay small."""
        whole = torch.randint(-largest, largest + 1, tuple(shape), generator=generator(self.seed, name)).double()
        if self.T <= DENSE_UP_TO:
            return whole
        density = 0.25 * min(1.0, SPARSE_UP_TO / self.T)
        return whole * (self.uniform(name + " kept", shape) < density)

    def one_hot(self, name: str, shape: Sequence[int]) -> Tensor:
        """Rows with a single one."""
        index = torch.randint(shape[-1], tuple(shape[:-1]), generator=generator(self.seed, name))
        return torch.nn.functional.one_hot(index, shape[-1]).double()

    def _spread(self, name: str, x: Tensor, *, outliers: bool) -> Tensor:
        """Give rows or channels of very different size, where the region says so."""
        if self.regime == "outlier" and outliers:
            channels = torch.randperm(x.shape[-1], generator=generator(self.seed, name + " channels"))
            some = channels[: max(1, x.shape[-1] // 16)]
            x = x.clone()
            x[..., some] *= self.uniform(name + " outliers", some.shape, 30.0, 100.0)
        if self.regime == "range":
            x = x * 2.0 ** self.uniform(name + " range", (*x.shape[:-1], 1), -6.0, 6.0)
        return x

    def _holes(self, name: str, x: Tensor) -> Tensor:
        return x * (self.uniform(name + " zeros", (*x.shape[:-1], 1)) >= 0.25) if self.regime == "zeros" else x

    def operand(self, name: str, shape: Sequence[int], *, role: str) -> Tensor:
        """Return a query, value or bonus of that shape."""
        if self.exact:
            return self.integers(name, shape)
        x = self.normal(name, shape)
        if self.regime == "positive":
            x = x.abs()
        if role == "query" and self.regime == "unit":
            return torch.nn.functional.normalize(x, dim=-1)
        if role == "bonus":
            return x
        return self._holes(name, self._spread(name, x, outliers=role == "value"))

    def key(self, name: str, shape: Sequence[int], *, unit: bool, low_rank: bool = False) -> Tensor:
        """Return keys [B, T, H, K]; `unit` where their norm matters for stability."""
        if self.regime == "onehot" and unit:
            return self.one_hot(name, shape)
        if self.exact:
            return self.integers(name, shape)
        x = self.normal(name, shape)
        if self.regime == "collinear":
            common = self.normal(name + " common", (shape[0], 1, *shape[2:]))
            exponent = int(torch.randint(1, 6, (), generator=generator(self.seed, name + " nearness")))
            x = common + 10.0**-exponent * x
        if self.regime == "positive":
            x = x.abs()
        if not unit or self.regime == "outlier":
            x = self._spread(name, x, outliers=True)
        if unit or self.regime == "unit":
            x = torch.nn.functional.normalize(x, dim=-1)
        if unit and self.regime == "offnorm":
            x = x * self.uniform(name + " norm", (*shape[:-1], 1), *(_OFF_NORM_LOW_RANK if low_rank else _OFF_NORM))
        return self._holes(name, x)

    def strength(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return beta before it is bounded by the keys: in (0, 1), up to 2 where the region says so."""
        if self.exact:
            return (self.uniform(name, shape) < 0.75).double()
        logits = self.normal(name, shape)
        if self.regime == "reflecting":
            return 2.0 * torch.sigmoid(logits + 1.0)
        beta = torch.sigmoid(logits)
        return beta * (self.uniform(name + " zeros", shape) >= 0.125) if self.regime == "zeros" else beta

    def removal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return eta of RWKV-7, in (0, 1) for each channel; 0 or 1 for each token in the exact region."""
        if self.exact:
            return (self.uniform(name, (*shape[:-1], 1)) < 0.75).double().expand(tuple(shape))
        return torch.sigmoid(self.normal(name, shape))

    def log_gate(self, name: str, shape: Sequence[int], *, bounded: bool = False) -> Tensor:
        """Return log gates, at most zero; `bounded` for gates above -exp(-1/2) in the production region."""
        x = self.normal(name, shape)
        u = self.uniform(name + " u", shape)
        if self.gate == "mild":
            return torch.nn.functional.logsigmoid(x) / 16.0
        if self.gate == "production":
            return -_RWKV7_BOUND * torch.sigmoid(x) if bounded else -5.0 * torch.sigmoid(1.2 * x - 1.9)
        if self.gate == "strong":
            return -0.5 - 4.0 * u
        if self.gate == "reset":
            return torch.where(u < 0.05, -256.0, torch.where(u < 0.15, -60.0, 0.0)).double()
        if self.gate == "tiny":
            return -0.0001 * (0.5 + u)
        if self.gate == "exact":
            return torch.where(u < 0.1, -256.0, 0.0).double()
        if self.gate == "inf":
            return torch.where(u < 0.05, -torch.inf, -5.0 * torch.sigmoid(1.2 * x - 1.9))
        return torch.zeros_like(x)

    def step_size(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return dt of Mamba-2: log-uniform from 0.001 to 0.1 at initialisation, larger where gates are strong."""
        u = self.uniform(name, shape)
        small = 10.0 ** (-3.0 + 2.0 * u)
        rare = self.uniform(name + " rare", shape)
        if self.exact:
            return (rare >= 0.25).double()
        if self.gate == "production":
            return torch.where(rare < 0.2, 0.2 + 1.3 * u, small)
        if self.gate == "strong":
            return 0.3 + 1.2 * u
        if self.gate == "reset":
            return torch.where(rare < 0.05, 4.0, torch.where(rare < 0.15, 0.9375, 2.0**-20)).double()
        if self.gate == "none":
            return 0.5 + u
        return small

    def log_rate(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return A of Mamba-2: -1 to -16 at initialisation; 0 where nothing decays."""
        u = self.uniform(name, shape)
        if self.gate == "none":
            return torch.zeros_like(u)
        if self.gate == "exact":
            return torch.where(u < 0.5, -256.0, 0.0).double()
        if self.gate == "strong":
            return -1.0 - 2.0 * u
        if self.gate == "reset":
            return torch.full_like(u, -64.0)
        if self.gate == "tiny":
            return -0.005 * (0.5 + u)
        return -1.0 - 15.0 * u
