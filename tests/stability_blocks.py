"""Module targets as users write them, right and wrong."""

import torch
from torch import Tensor, nn

from linverify.implementation import kernel


class Block(nn.Module):
    """A residual map that mixes tokens by a causal average."""

    def __init__(self, dim: int, factor: float = 1.0) -> None:
        super().__init__()
        self.norm, self.map, self.factor = nn.LayerNorm(dim), nn.Linear(dim, dim), factor

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        average = torch.ones(T, T, dtype=x.dtype).tril() / torch.arange(1, T + 1, dtype=x.dtype)[:, None]
        return x + self.factor * (average @ self.map(self.norm(x)))


class WithoutEps(Block):
    """A norm without an eps comes first."""

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x / x.square().mean(-1, keepdim=True).sqrt())


class Overflows(Block):
    """The square of what comes in is formed in its own format, and is beyond float16 for the largest inputs."""

    def forward(self, x: Tensor) -> Tensor:
        size = (x * 64).square().mean(-1, keepdim=True)
        return x + self.map(x) * size / (1 + size)


class _NoTranspose(torch.autograd.Function):
    """A linear map whose backward pass is another one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, upstream: Tensor) -> Tensor:
        return 2.001 * upstream

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return 2 * tangent


class NoTranspose(Block):
    """Forward and reverse mode disagree."""

    def forward(self, x: Tensor) -> Tensor:
        return _NoTranspose.apply(x)


class Narrow(nn.Module):
    """Gives back half of the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


class WithCache(Block):
    """Returns a cache beside its result, as layers of a decoder do."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class Refuses(Block):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such tile\nin a grid")


class Raises(nn.Module):
    def __init__(self, dim: int) -> None:
        raise ValueError("no such width")


def made(width: int = 24) -> nn.Module:
    """A function that returns a block."""
    return Block(width)


def other() -> dict:
    """A function that returns something else."""
    return {}


instance = Block(16)


def no_module(q, k, v):
    return v


@kernel("linear_attention")
def declared(q, k, v, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.einsum("bihk,bjhk,ij,bjhv->bihv", q * scale, k, torch.ones(q.shape[1], q.shape[1]).tril().to(q), v)


class Loud(Block):
    """The first of every stack hears its own gradients thirty times as loud (a scale that belongs elsewhere)."""

    made = 0

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        if Loud.made % 4 == 0:
            for parameter in self.parameters():
                parameter.register_hook(lambda g: 30 * g)
        Loud.made += 1


class Bursts(Block):
    """Its gradients are not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x * 0).sqrt()
