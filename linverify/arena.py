"""An arena: the memory of everything that a call is given, in one piece, each tensor between guard bands.

WHY. In one piece it is sent to a GPU at once, copied at once and compared with its copy at once, whatever the number of
tensors; the comparison covers values, what surrounds a view in its layout, and the guard bands. On a CPU nothing needs a copy
that lies as it came: it is compared with what it was made of.
"""

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from linverify.fence import BAND, PATTERN, beside, carved, contiguous, intact, plain_empty
from linverify.hygiene import holders
from linverify.layout import Footprint, Placed, plain, same_bits, same_bytes
from linverify.problem import Breach
from linverify.suspicion import Suspicion, differ
from linverify.transfer import STAGED, staging

_ALIGNED = 512  # bytes, as CUDA's allocators have it


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """Where a tensor lies: its first byte, and one past its last."""

    start: int
    stop: int


class _Spare:
    """Memory on the CPU for the next arena: that of the last one, unless somebody still holds a piece of it.

    What the C library hands out is filled twice over in this process, see `poison`; an arena writes every byte of its own.
    """

    memory: torch.Tensor | None = None
    alone = 0  # holders of that memory when no arena is in it

    @classmethod
    def cut(cls, size: int) -> torch.Tensor:
        known = cls.memory
        if known is None or size > known.numel() or holders(known.untyped_storage()) > cls.alone:
            known = plain_empty(size, dtype=torch.uint8)
            cls.memory = known if size <= STAGED else None
            cls.alone = holders(known.untyped_storage())
        return known[:size]


class Arena:
    """Tensors on the device and how they were when they came there.

    Attributes:
        placed: the tensors, by label.
    """

    def __init__(self, parts: Mapping[str, Footprint | Placed], device: torch.device) -> None:
        """Lay the tensors down.

        Args:
            parts: by what a breach calls them; a `Placed` has memory of its own, which is kept an eye on where it is. Their
                values stay as they are until the arena is let go.
            device: where the target runs.
        """
        self._parts = parts
        laid = {label: part for label, part in parts.items() if isinstance(part, Footprint)}
        self._slots, total = _slots(laid)
        self._bands = _bands(self._slots, total)
        direct = device.type == "cpu" or total > STAGED
        if device.type == "cpu":
            memory = _Spare.cut(total)
        else:
            memory = plain_empty(total, dtype=torch.uint8, device=device) if direct else staging(total, device)
        _fill(memory, self._bands)
        if direct:
            self._memory = memory
            self.placed = {label: part.put(self._base(memory, label)) for label, part in laid.items()}
        else:
            for label in laid:
                self._stage(memory, label)
            self._memory = memory.to(device, non_blocking=True)
            self.placed = {label: part.over(self._base(self._memory, label)) for label, part in laid.items()}
        self._before = None if device.type == "cpu" else self._memory.clone()
        self._kept = {n: _kept(part.values, self.placed[n]) for n, part in laid.items()} if self._before is None else {}
        far = {label: part for label, part in parts.items() if isinstance(part, Placed)}
        self.placed.update(far)
        # On a GPU the copy is made in the order of its stream, like whatever changes the tensor later.
        self._far = {label: placed.base.clone() for label, placed in far.items()}

    def overwrite(self, label: str, values: torch.Tensor) -> None:
        """Write new values of the same shape into the memory of a tensor; they stay as they are, too."""
        placed = self.placed[label]
        placed.overwrite(values)
        if label in self._far:
            self._far[label].copy_(placed.base)
        elif placed.view is placed.base and self._before is None:
            self._kept[label] = _kept(values, placed)
        else:
            self._part(label).over(self._was(label)).overwrite(values)

    def blank(self) -> None:
        """Fill everything with the pattern of the guard bands; tensors with memory of their own stay."""
        self._memory.fill_(PATTERN)

    def restore(self) -> None:
        """Write everything once more, in the order of the current stream."""
        if self._before is not None:
            self._memory.copy_(self._before)
        for label, values in self._kept.items():
            self._base(self._memory, label).copy_(values)

    def suspicions(self) -> Iterator[Suspicion]:
        """Yield whether a tensor, what surrounds it, or a guard band has changed."""
        if self._before is None:
            yield Suspicion(not self._untouched(), self._tell)
        elif self._slots:
            yield Suspicion(differ(self._memory.view(torch.int64), self._before.view(torch.int64)), self._tell)
        for label, copy in self._far.items():
            told = partial(_changed, label, self.placed[label])
            yield Suspicion(differ(self.placed[label].base, copy), told)

    def _untouched(self) -> bool:
        """Whether all on the CPU is as it was."""
        start = self._memory.data_ptr()
        return all(intact(start + begin, end - begin) for begin, end in self._bands) and all(
            same_bytes(start + self._slots[label].start, values.data_ptr(), values.nbytes)
            for label, values in self._kept.items()
        )

    def _stage(self, memory: torch.Tensor, label: str) -> None:
        """Write a tensor into memory of the CPU that is sent to a GPU."""
        part = self._part(label)
        if part.whole:
            ctypes.memmove(memory.data_ptr() + self._slots[label].start, part.values.data_ptr(), part.values.nbytes)
        else:
            part.put(self._base(memory, label))

    def _was(self, label: str) -> torch.Tensor:
        """The base of a tensor as it was."""
        return self._kept[label] if self._before is None else self._base(self._before, label)

    def _tell(self) -> Iterator[Breach]:
        for label in self._slots:
            if not same_bits(self._base(self._memory, label), self._was(label)):
                yield from _changed(label, self.placed[label])
        for label, slot in self._slots.items():
            bands = torch.cat((self._memory[slot.start - BAND : slot.start], self._memory[slot.stop : _end(slot)]))
            if count := int((bands != PATTERN).sum()):
                yield beside(label, count)

    def _part(self, label: str) -> Footprint:
        part = self._parts[label]
        assert isinstance(part, Footprint)
        return part

    def _base(self, memory: torch.Tensor, label: str) -> torch.Tensor:
        part = self._part(label)
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


def _bands(slots: Mapping[str, _Slot], total: int) -> list[tuple[int, int]]:
    """First byte of what lies between tensors, and one past the last."""
    begins = [0, *(slot.stop for slot in slots.values())]
    ends = [*(slot.start for slot in slots.values()), total]
    return list(zip(begins, ends, strict=True))


def _fill(memory: torch.Tensor, bands: Iterable[tuple[int, int]]) -> None:
    for begin, end in bands:
        if memory.device.type == "cpu":
            ctypes.memset(memory.data_ptr() + begin, PATTERN, end - begin)
        else:
            memory[begin:end].fill_(PATTERN)


def _kept(values: torch.Tensor, placed: Placed) -> torch.Tensor:
    """What the memory behind a tensor on the CPU must hold: the values where they fill it, or else a copy."""
    filled = placed.view is placed.base and values.dtype == placed.base.dtype and plain(values)
    return values.detach() if filled else placed.base.clone()
