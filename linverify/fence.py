"""Fences: memory with guard bands on both sides, so that a write beyond a tensor is seen whoever allocated the tensor.

WHY. Allocators hand out blocks with slack behind them, and next to them lies other live data: a store past the end changes a
number somewhere else, or nothing that a test looks at. Inside a fence the neighbours are bytes of a known pattern. The pattern
is all ones, which is a NaN in every floating-point format and -1 in every integer: what is read from there shows, too.
"""

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from linverify.layout import same_bytes
from linverify.problem import Breach
from linverify.suspicion import Suspicion

# Bytes on each side; a multiple of every alignment that kernels are specialised on.
BAND = 8192
PATTERN = 0xFF
_intact = ctypes.create_string_buffer(bytes([PATTERN]) * (2 * BAND), 2 * BAND)
_INTACT = ctypes.addressof(_intact)
# Bytes of workspaces that are kept for the check at the end of a call; beyond that the oldest are checked and let go.
_HELD = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Slab:
    label: str
    memory: torch.Tensor  # uint8: band, tensor, band


class Fence:
    """The guarded memory of one call."""

    def __init__(self) -> None:
        self._slabs: list[_Slab] = []
        self._gone: dict[str, int] = {}  # bytes changed beside memory that was let go
        self._held = 0

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, label: str, stride: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return memory between guard bands, full of their pattern; the tensor's storage starts at its first element.

        Args:
            shape: any.
            dtype: any.
            device: "cpu" or a CUDA device.
            label: what a breach calls it.
            stride: in elements; () for contiguous.
        """
        stride = tuple(stride) or contiguous(shape)
        inside = _reach(shape, stride) * dtype.itemsize
        size = -(-inside // 64) * 64  # the band behind begins at once, but its own end is aligned
        slab = plain_empty(2 * BAND + size, dtype=torch.uint8, device=device).fill_(PATTERN)
        if self._held + slab.numel() > _HELD:
            self._collect()
        self._slabs.append(_Slab(label, slab[: 2 * BAND + inside]))
        self._held += slab.numel()
        return carved(slab, BAND, shape, dtype, stride)

    def suspicions(self) -> Iterator[Suspicion]:
        """Yield whether something was written beyond a piece of memory since it was made, one for each device."""
        if self._gone:
            yield Suspicion(True, lambda: _breaches(self._gone))
        for slabs in _by_device(self._slabs):
            yield Suspicion(_touched(slabs), partial(_told, slabs))

    def close(self) -> None:
        """Let the memory go; tensors in it live on."""
        self._slabs.clear()

    def _collect(self) -> None:
        for slabs in _by_device(self._slabs):
            self._gone.update(_counts(slabs))
        self._slabs.clear()
        self._held = 0


# As they were before anything replaced them.
plain_empty = torch.empty


def carved(
    slab: torch.Tensor, start: int, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int]
) -> torch.Tensor:
    """Return a tensor in the memory of another, from that byte on: of offset 0, it knows nothing of what lies around it."""
    storage = slab.untyped_storage()[start : start + _reach(shape, stride) * dtype.itemsize]
    return plain_empty(0, dtype=dtype, device=slab.device).set_(storage, 0, tuple(shape), tuple(stride))


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of contiguous memory, in elements."""
    strides, width = [], 1
    for n in reversed(shape):
        strides.append(width)
        width *= max(n, 1)
    return tuple(reversed(strides))


def _reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last, both counted."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if math.prod(shape) else 0


def beside(label: str, count: int) -> Breach:
    """Say that bytes in a guard band have changed."""
    where = f"{count} byte{'s' * (count > 1)} within {BAND} bytes of it"
    return Breach("out_of_bounds", f"memory beside {label} was written: {where} changed")


def _by_device(slabs: Sequence[_Slab]) -> list[list[_Slab]]:
    return [[s for s in slabs if s.memory.device == device] for device in {s.memory.device for s in slabs}]


def _bands(slabs: Sequence[_Slab]) -> torch.Tensor:
    return torch.cat([band for s in slabs for band in (s.memory[:BAND], s.memory[-BAND:])])


def intact(address: int, size: int) -> bool:
    """Tell whether so many bytes on the CPU, two bands at most, are of the pattern."""
    if size > 2 * BAND:
        raise ValueError(f"{size} bytes are more than two bands")
    return same_bytes(address, _INTACT, size)


def _touched(slabs: Sequence[_Slab]) -> torch.Tensor | bool:
    """Whether a band has changed, as a scalar on a GPU."""
    if slabs[0].memory.device.type != "cpu":
        return (_bands(slabs) != PATTERN).any()
    ends = ((m.data_ptr(), m.data_ptr() + m.numel() - BAND) for m in (s.memory for s in slabs))
    return not all(intact(place, BAND) for pair in ends for place in pair)


def _counts(slabs: Sequence[_Slab]) -> dict[str, int]:
    counts = (_bands(slabs) != PATTERN).view(len(slabs), -1).sum(1).tolist()
    return {s.label: int(n) for s, n in zip(slabs, counts, strict=True) if n}


def _told(slabs: Sequence[_Slab]) -> Iterator[Breach]:
    return _breaches(_counts(slabs))


def _breaches(counts: Mapping[str, int]) -> Iterator[Breach]:
    return (beside(label, count) for label, count in counts.items())
