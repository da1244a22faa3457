"""Fences: memory with guard bands on both sides, so that a write beyond a tensor is seen whoever allocated the tensor.

WHY. Allocators hand out blocks with slack behind them, and next to them lies other live data: a store past the end changes a
number somewhere else, or nothing that a test looks at. Inside a fence the neighbours are bytes of a known pattern. The pattern
is all ones, which is a NaN in every floating-point format and -1 in every integer: what is read from there shows, too.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from linverify.problem import Breach

# Bytes on each side; a multiple of every alignment that kernels are specialised on.
BAND = 8192
_PATTERN = 0xFF
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
        self._broken: dict[str, int] = {}
        self._held = 0

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, label: str, stride: Sequence[int] = ()
    ) -> torch.Tensor:
        """Return uninitialised memory between guard bands; the tensor's own storage starts at its first element.

        Args:
            shape: any.
            dtype: any.
            device: "cpu" or a CUDA device.
            label: what a breach calls it.
            stride: in elements; () for contiguous.
        """
        stride = tuple(stride) or _contiguous(shape)
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if math.prod(shape) else 0
        inside = reach * dtype.itemsize
        size = -(-inside // 64) * 64  # the band behind begins at once, but its own end is aligned
        slab = _plain_empty(2 * BAND + size, dtype=torch.uint8, device=device)
        slab[:BAND] = _PATTERN
        slab[BAND + inside :] = _PATTERN
        if self._held + slab.numel() > _HELD:
            self._collect()
        self._slabs.append(_Slab(label, slab[: 2 * BAND + inside]))
        self._held += slab.numel()
        # A slice of a storage is a storage of its own: the tensor has offset 0 and knows nothing of the bands.
        storage = slab.untyped_storage()[BAND : BAND + inside]
        return _plain_empty(0, dtype=dtype, device=device).set_(storage, 0, tuple(shape), stride)

    def breaches(self) -> Iterator[Breach]:
        """Yield a breach for each piece of memory beyond which something was written since it was made."""
        self._look()
        for label, count in self._broken.items():
            where = f"{count} byte{'s' * (count > 1)} within {BAND} bytes of it"
            yield Breach("out_of_bounds", f"memory beside {label} was written: {where} changed")

    def close(self) -> None:
        """Let the memory go; tensors in it live on."""
        self._slabs.clear()

    def _collect(self) -> None:
        self._look()
        self._slabs.clear()
        self._held = 0

    def _look(self) -> None:
        if not self._slabs:
            return
        for device in {s.memory.device for s in self._slabs}:
            slabs = [s for s in self._slabs if s.memory.device == device]
            bands = torch.cat([band for s in slabs for band in (s.memory[:BAND], s.memory[-BAND:])])
            if not bool((bands != _PATTERN).any()):
                continue
            counts = (bands != _PATTERN).view(len(slabs), -1).sum(1).tolist()
            self._broken.update({s.label: int(n) for s, n in zip(slabs, counts, strict=True) if n})


# As they were before anything replaced them.
_plain_empty = torch.empty


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, width = [], 1
    for n in reversed(shape):
        strides.append(width)
        width *= max(n, 1)
    return tuple(reversed(strides))
