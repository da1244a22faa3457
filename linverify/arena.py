"""An arena: the memory of everything that a call is given, in one piece, each tensor between guard bands.

WHY. In one piece it is sent to a GPU at once, copied at once and compared with its copy at once, whatever the number of
tensors; the comparison covers values, what surrounds a view in its layout, and the guard bands.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from linverify.fence import BAND, PATTERN, beside, carved, contiguous, plain_empty
from linverify.layout import Footprint, Placed, same_bits
from linverify.problem import Breach
from linverify.suspicion import Suspicion, differ
from linverify.transfer import STAGED, staging

_ALIGNED = 512  # bytes, as CUDA's allocators have it


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """Where a tensor lies: its first byte, and one past its last."""

    start: int
    stop: int


class Arena:
    """Tensors on the device and how they were when they came there.

    Attributes:
        placed: the tensors, by label.
    """

    def __init__(self, parts: Mapping[str, Footprint | Placed], device: torch.device) -> None:
        """Lay the tensors down.

        Args:
            parts: by what a breach calls them; a `Placed` has memory of its own, which is kept an eye on where it is.
            device: where the target runs.
        """
        self._parts = parts
        laid = {label: part for label, part in parts.items() if isinstance(part, Footprint)}
        self._slots, total = _slots(laid)
        direct = device.type == "cpu" or total > STAGED
        memory = plain_empty(total, dtype=torch.uint8, device=device) if direct else staging(total, device)
        _fill_bands(memory, self._slots)
        self.placed = {label: part.put(self._base(memory, label)) for label, part in laid.items()}
        self._memory = memory if direct else memory.to(device, non_blocking=True)
        self._before = self._memory.clone()
        if not direct:
            self.placed = self._over(self._memory)
        far = {label: part for label, part in parts.items() if isinstance(part, Placed)}
        self.placed.update(far)
        # On a GPU the copy is made in the order of its stream, like whatever changes the tensor later.
        self._far = {label: placed.base.clone() for label, placed in far.items()}

    def overwrite(self, label: str, values: torch.Tensor) -> None:
        """Write new values of the same shape into the memory of a tensor."""
        self.placed[label].overwrite(values)
        if label in self._far:
            self._far[label].copy_(self.placed[label].base)
        else:
            self._over(self._before)[label].overwrite(values)

    def blank(self) -> None:
        """Fill everything with the pattern of the guard bands; tensors with memory of their own stay."""
        self._memory.fill_(PATTERN)

    def restore(self) -> None:
        """Write everything once more, in the order of the current stream."""
        self._memory.copy_(self._before)

    def suspicions(self) -> Iterator[Suspicion]:
        """Yield whether a tensor, what surrounds it, or a guard band has changed."""
        if self._slots:
            yield Suspicion(differ(self._memory.view(torch.int64), self._before.view(torch.int64)), self._tell)
        for label, copy in self._far.items():
            told = partial(_changed, label, self.placed[label])
            yield Suspicion(differ(self.placed[label].base, copy), told)

    def _tell(self) -> Iterator[Breach]:
        for label in self._slots:
            if not same_bits(self._base(self._memory, label), self._base(self._before, label)):
                yield from _changed(label, self.placed[label])
        for label, slot in self._slots.items():
            bands = torch.cat((self._memory[slot.start - BAND : slot.start], self._memory[slot.stop : _end(slot)]))
            if count := int((bands != PATTERN).sum()):
                yield beside(label, count)

    def _over(self, memory: torch.Tensor) -> dict[str, Placed]:
        parts = ((label, part) for label, part in self._parts.items() if isinstance(part, Footprint))
        return {label: part.over(self._base(memory, label)) for label, part in parts}

    def _base(self, memory: torch.Tensor, label: str) -> torch.Tensor:
        part = self._parts[label]
        assert isinstance(part, Footprint)
        return carved(memory, self._slots[label].start, part.shape, part.values.dtype, contiguous(part.shape))


def _changed(label: str, placed: Placed) -> Iterator[Breach]:
    where = "" if placed.unique is placed.base else " (or the memory around it)"
    yield Breach("mutated_input", f"{label}{where} was changed in place")


def _slots(parts: Mapping[str, Footprint]) -> tuple[dict[str, _Slot], int]:
    """Where each tensor lies, a band before and behind it, and the bytes of all."""
    found: dict[str, _Slot] = {}
    end = 0
    for label, part in parts.items():
        start = end + BAND
        stop = start + torch.Size(part.shape).numel() * part.values.element_size()
        found[label] = _Slot(start, stop)
        end = _end(found[label])
    return found, end


def _end(slot: _Slot) -> int:
    """Where the band behind a tensor ends: at most BAND bytes on, so that the next tensor is aligned."""
    return (slot.stop + BAND) // _ALIGNED * _ALIGNED


def _fill_bands(memory: torch.Tensor, slots: Mapping[str, _Slot]) -> None:
    end = 0
    for slot in slots.values():
        memory[end : slot.start].fill_(PATTERN)
        end = slot.stop
    memory[end:].fill_(PATTERN)
