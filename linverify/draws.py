"""How inputs are drawn where their kind does not say enough: functions of (generator, shape), float64 tensors out."""

import torch
from torch import Generator, Tensor

from linverify.operator import Draw


def normal(mean: float, deviation: float) -> Draw:
    """Normal numbers."""

    def draw(generator: Generator, shape: tuple[int, ...]) -> Tensor:
        return mean + deviation * torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw


def uniform(low: float, high: float) -> Draw:
    """Uniform numbers."""

    def draw(generator: Generator, shape: tuple[int, ...]) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    return draw


def ramp(first: float, step: float) -> Draw:
    """The same rising numbers along the last axis, in every row: first, first + step, ..."""

    def draw(_: Generator, shape: tuple[int, ...]) -> Tensor:
        return (first + step * torch.arange(shape[-1], dtype=torch.float64)).expand(shape).clone()

    return draw


def shifted(draw: Draw, by: float, share: float) -> Draw:
    """Another draw, moved by a constant for that share of the indices of the last axis (heads, channels) of each row."""

    def moved(generator: Generator, shape: tuple[int, ...]) -> Tensor:
        found: Tensor = draw(generator, shape)
        chosen = torch.rand((shape[0], *[1] * (len(shape) - 2), shape[-1]), generator=generator) < share
        return found + by * chosen

    return moved
