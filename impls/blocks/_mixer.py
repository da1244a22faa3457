"""A token mixer: projections to heads, an operator's own form, and the projection back."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Form = Callable[..., tuple[Tensor, Tensor | None]]


def form(name: str, operator: str) -> Form:
    """Return the function of a form (naive, recurrent, chunkwise) of an operator."""
    found: Form = getattr(importlib.import_module(f"linverify.impls.torch_{name}"), operator)
    return found


class Mixer(nn.Module):
    """Queries, keys and values of all heads, what the operator makes of them, and the projection back.

    Shapes: x and the result [B, T, D]; heads are D / H wide.
    """

    def __init__(self, dim: int, heads: int, function: Form, **parameters: Any) -> None:
        """Take an operator's form and the parameters that it is called with.

        Raises:
            ValueError: the width is no multiple of the heads.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(f"expected dim to be a multiple of heads={heads}, got {dim}")
        self.heads, self.function, self.parameters_of_form = heads, function, parameters
        self.into = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def operands(self, x: Tensor) -> dict[str, Tensor]:
        """Return q, k and v [B, T, H, D / H]."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.into(x).chunk(3, -1))
        return {"q": q, "k": k, "v": v}

    def more(self, _: Tensor) -> Mapping[str, Tensor]:
        """Return the inputs that an operator has besides; none by default."""
        return {}

    def read(self, x: Tensor) -> Tensor:
        """Return the heads' outputs [B, T, H, D / H]."""
        return self.function(**self.operands(x), **self.more(x), **self.parameters_of_form)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of x."""
        found: Tensor = self.out(self.read(x).flatten(-2))
        return found


def drawn(shape: tuple[int, ...], draw: Callable[[Any, tuple[int, ...]], Any]) -> Tensor:
    """A constant as its operator draws it, with torch's current seed."""
    found: Tensor = draw(torch.Generator().manual_seed(torch.initial_seed() % 2**63), shape)
    return found.float()
