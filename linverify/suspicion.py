"""Suspicions: what may be broken, as flags on the device, so that one transfer answers all of them.

WHY. Each look at a number of a GPU waits for it, and a call is looked at in many places. Comparisons are therefore queued like
any other work; only a flag that says yes is followed by the comparison that tells what happened.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from linverify.layout import same_bits
from linverify.problem import Breach


@dataclass(frozen=True, slots=True, eq=False)
class Suspicion:
    """Something that may be broken.

    Attributes:
        flag: True where it is; a scalar on a GPU, where nobody has waited for it yet.
        tell: says what exactly, with as many looks at the device as that takes.
    """

    flag: torch.Tensor | bool
    tell: Callable[[], Iterable[Breach]]


def differ(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor | bool:
    """Tell where they are whether two tensors of equal shape and dtype differ in a bit; nothing waits for a GPU."""
    if first.device.type == "cpu":
        return not same_bits(first, second)
    if first.is_complex():
        first, second = torch.view_as_real(first), torch.view_as_real(second)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return (first.view(kind) != second.view(kind)).any()
