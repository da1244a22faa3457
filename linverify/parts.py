"""Gradients in parts: an input that feeds several terms of the recurrence gets a part of its gradient from each.

A program that widens a 16-bit gate anew for every use, as PyTorch programs do that make HGRN2's key beside the kernel, has each
part rounded to the gate's format before they are added. Where the parts cancel, that rounding is all there is.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from linverify.dtype import FP32, format_of, round_to
from linverify.noise import SPREAD
from linverify.operator import GATE_KINDS
from linverify.reference.question import Question


def narrow_gates(question: Question) -> tuple[str, ...]:
    """Gates in 16 bits whose gradient is asked for."""
    given, wrt = question.problem.tensors, question.problem.wrt
    names = (i.name for i in question.operator.of_kind(*GATE_KINDS) if i.name in wrt)
    return tuple(n for n in names if format_of(given[n].dtype).precision < FP32.precision)


def parts_of(
    leaf: Tensor, terms: Mapping[str, Tensor], upstream: Mapping[str, Tensor], *, batched: bool = False
) -> list[Tensor]:
    """What each term that depends on a leaf gives to its gradient.

    Args:
        leaf: the input.
        terms: what is made of the inputs, by name.
        upstream: gradients of the terms, with a leading axis of realisations where `batched`.
        batched: see `upstream`.
    """
    found: list[Tensor] = []
    for name, term in terms.items():
        grads: Sequence[Tensor | None] = torch.autograd.grad(
            [term], [leaf], [upstream[name]], is_grads_batched=batched, retain_graph=True, allow_unused=True
        )
        found += [g for g in grads if g is not None]
    return found


def added(parts: Sequence[Tensor], dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """The sum of parts, each rounded to `dtype` where there are several.

    A generator draws errors as large as those of rounding; None rounds to nearest.
    """
    fmt = format_of(dtype)
    spread = SPREAD * fmt.unit_roundoff

    def rounded(g: Tensor) -> Tensor:
        if generator is None:
            return round_to(g, fmt)
        chance = torch.rand(g.shape, generator=generator, device=g.device, dtype=torch.float32)
        return g * (1 + spread * (2 * chance - 1))

    return torch.stack([rounded(g) for g in parts]).sum(0) if len(parts) > 1 else parts[0]
