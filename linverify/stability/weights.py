"""What a module's tokens weigh for each other: matrices [T, T] of a block whose inside is not known, and where they are from.

In this order, the first that can be had:

* its method ``mix(scores, values)``, where its forward pass goes through one: rows of unit values are the weights;
* its softmax over scores [.., T, T], torch's own attention functions included;
* unit values, where what a linear map hands out is mixed linearly (``linverify.stability.unit_values``);
* influence, which is no attention matrix (``linverify.stability.influence``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linverify.dispatch import Mode
from linverify.stability.influence import by_influence
from linverify.stability.unit_values import by_values

METHOD, SOFTMAX, VALUES, INFLUENCE = "its own mix(scores, values)", "its softmax", "unit values", "influence"
Mix = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What tokens weigh for each other.

    Attributes:
        p: [N, T, T], of the heads of all sequences; of channels where heads cannot be told.
        source: METHOD, SOFTMAX, VALUES or INFLUENCE.
        part: which part of the module mixes; "" of the module itself or where it is not asked.
    """

    p: Tensor
    source: str
    part: str = ""


def token_weights(block: nn.Module, x: Tensor) -> Weights:
    """The weights of a block at inputs x [B, T, D].

    Raises:
        ValueError: what ``mix`` takes or returns is none of its shapes, or nothing mixes tokens.
    """
    for source, find in ((METHOD, _by_method), (SOFTMAX, _by_softmax), (VALUES, by_values)):
        if (p := find(block, x)) is not None:
            return Weights(p, source)
    p, part = by_influence(block, x)
    return Weights(p, INFLUENCE, part)


def mixes(block: nn.Module, x: Tensor) -> list[tuple[nn.Module, Mix, Tensor]]:
    """The parts whose forward pass goes through their own ``mix``, that method, and the scores [B, H, T, T] it was given.

    Raises:
        ValueError: they have another shape.
    """
    found: list[tuple[nn.Module, Mix, Any]] = []
    with _heard(block, found):
        block(x)
    for _, _, scores in found:
        if not isinstance(scores, Tensor) or scores.dim() != 4 or scores.shape[-1] != scores.shape[-2]:
            came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"mix(scores, values): expected scores of shape (B, H, T, T), got {came}")
    return found


@contextmanager
def _heard(block: nn.Module, found: list[tuple[nn.Module, Mix, Any]]) -> Iterator[None]:
    own: list[tuple[nn.Module, Any]] = [
        (part, part.mix) for part in block.modules() if callable(getattr(part, "mix", None))
    ]
    before = [part.__dict__.get("mix") for part, _ in own]

    def noting(part: nn.Module, mix: Mix) -> Mix:
        def noted(scores: Any, values: Any) -> Any:
            found.append((part, mix, scores.detach() if isinstance(scores, Tensor) else scores))
            return mix(scores, values)

        return noted

    for part, mix in own:
        part.__dict__["mix"] = noting(part, mix)
    try:
        yield
    finally:
        for (part, _), old in zip(own, before, strict=True):
            part.__dict__.pop("mix")
            if old is not None:
                part.__dict__["mix"] = old


def rows(mix: Mix, scores: Tensor) -> Tensor:
    """Weights [B, H, T, T] of scores of that shape: what unit values become.

    Raises:
        ValueError: the method returns another shape.
    """
    unit = torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device).expand(scores.shape)
    found = mix(scores, unit)
    if not isinstance(found, Tensor) or found.shape != scores.shape:
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"mix(scores, values): expected (B, H, T, V) = {tuple(scores.shape)} of values of that shape, got {came}"
        )
    return found


@torch.no_grad()
def _by_method(block: nn.Module, x: Tensor) -> Tensor | None:
    found = [rows(mix, scores).flatten(0, 1) for _, mix, scores in mixes(block, x)]
    return torch.cat(found) if found else None


class Softmaxes(Mode):
    """Notes the results of every softmax over square matrices of scores.

    Attributes:
        found: weights [.., T, T].
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation of torch and look at its result."""
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default):
            last = args[1] in (-1, out.dim() - 1)
            if last and out.dim() > 2 and out.shape[-1] == out.shape[-2]:
                self.found.append(out.detach())
        return out


def softmaxes(block: nn.Module, x: Tensor) -> list[Tensor]:
    """Weights [N, T, T] of every softmax over [.., T, T] in a forward pass; torch's attention takes its written-out form."""
    with Softmaxes() as seen, sdpa_kernel(SDPBackend.MATH):
        block(x)
    return [p.flatten(0, -3) for p in seen.found if p.shape[-1] == x.shape[1]]


def _by_softmax(block: nn.Module, x: Tensor) -> Tensor | None:
    found = softmaxes(block, x)
    return torch.cat(found) if found else None
