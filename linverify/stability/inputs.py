"""Inputs on which gradients show themselves: positive scores, values that tell tokens apart, queries that fade."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from linverify.mechanism import by_factor
from linverify.rows import Row
from linverify.stability.probe import Probe

Tensors = dict[str, Tensor]
# How far below an eps a fading query has to bring the divisor before growth has surely ended, in powers of two.
BELOW = 10
# How far above it fading begins.
ABOVE = 12
FADING = 30
# Where powers of two end that a query's features may shrink to without leaving float64's normal range, products included.
DEEPEST = 200


def one_hot(B: int, T: int, V: int) -> Tensor:
    """Values [B, T, 1, V] of which every token has its own channel."""
    if T > V:
        raise ValueError(f"expected at most V={V} tokens, got {T}")
    return torch.eye(V, dtype=torch.float64)[:T].expand(B, T, V)[:, :, None].clone()


def telling(probe: Probe, B: int, T: int, label: str, *, V: int = 16, positive: bool = True) -> Tensors:
    """Ordinary inputs with one-hot values; positive queries and keys, so that no sum cancels."""
    found = probe.inputs(B, T, V=V)
    generator = probe.generator(label)
    for name in (probe.query, probe.key):
        x = torch.randn(found[name].shape, generator=generator, dtype=torch.float64)
        x = x.abs() + 0.25 if positive else x
        found[name] = torch.nn.functional.normalize(x, dim=-1) if probe.operator.unit_keys else x
    for i in probe.operator.inputs:
        if i.kind == "parameter" and {"B", "T"} <= set(i.axes):  # gates before their map: exponents round by their size
            found[i.name] = torch.zeros_like(found[i.name])
    found[probe.value] = one_hot(B, T, V)
    return found


def same_rows(tensors: Mapping[str, Tensor], probe: Probe, copies: int) -> Tensors:
    """The first batch row, so many times."""
    batched = {i.name for i in probe.operator.inputs if "B" in i.axes}
    return {n: t[:1].expand(copies, *t.shape[1:]).clone() if n in batched else t.clone() for n, t in tensors.items()}


def faded(probe: Probe, tensors: Mapping[str, Tensor], factors: Tensor) -> Tensors:
    """Inputs whose last query's features are smaller by a factor for each batch row [B]; rows before it stay as they are."""
    shrink = (probe.facts and probe.facts.shrink) or by_factor
    query = tensors[probe.query].clone()
    last = query[:, -1:]
    query[:, -1:] = shrink(last, factors.reshape(-1, *[1] * (query.dim() - 1)).expand_as(last))
    return {**tensors, probe.query: query}


def ladder(probe: Probe, row: Row) -> Tensor:
    """Factors 2^0 .. 2^-30; from above 1 where growth ends near it, and as far down as it takes to see it end."""
    first, last = 0, FADING
    facts = probe.facts
    end = None if facts is None else facts.crossover(row.mixed.shape[-1])
    if facts is not None and end is not None:
        start = float((row.length if facts.norm != "none" else row.total.abs()).amax())
        first = max(0, ABOVE - math.floor(math.log2(start / end)))
        last = max(last, math.ceil(math.log2(start / end)) + BELOW)
    return 2.0 ** -torch.arange(-first, min(last, DEEPEST) + 1, dtype=torch.float64)


def towards(row: Row, token: int = 0) -> Tensor:
    """Unit upstream gradients [B, H, V] that meet the bound of one token's score: along its distance from what is read."""
    return torch.nn.functional.normalize(row.distances[:, :, token], dim=-1)
