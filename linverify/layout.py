"""Memory layouts: the same values, laid out as users' models lay them out.

WHY. Slices of a fused projection, transposed heads and expanded gates reach kernels every day; a kernel that takes strides or
alignment for granted then computes something else. Whatever surrounds a view is filled with NaN and compared afterwards, so
reading or writing beyond it shows.
"""

import ctypes
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from linverify.errors import UsageError

LAYOUTS = ("contiguous", "strided", "offset", "expanded", "distant")
_REACH = 5 << 29  # elements that a distant tensor spans: 2^31 and a quarter more, so that its last tokens lie beyond
_ALIGNED = (
    64  # bytes; a storage offset that keeps the alignment a compiler specialises on, so nothing is compiled twice
)
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A tensor in its layout.

    Attributes:
        view: what the target gets (after detach().requires_grad_() where a gradient is asked for).
        base: all the memory behind it, padding included.
        unique: the part of `view` in which every element has its own memory; equal to `view` unless a stride is 0.
    """

    view: torch.Tensor
    base: torch.Tensor
    unique: torch.Tensor

    def overwrite(self, values: torch.Tensor) -> None:
        """Write new values of the same shape into the same memory."""
        index = tuple(slice(0, n) for n in self.unique.shape)
        with torch.no_grad():
            self.unique.copy_(values[index])


@dataclass(frozen=True, slots=True, eq=False)
class Footprint:
    """What a tensor in its layout takes of memory, before there is any.

    Attributes:
        values: of `Placed.unique`, on the CPU.
        shape: of `Placed.base`, which is contiguous.
        cut: makes `view` and `unique` of a base.
    """

    values: torch.Tensor
    shape: tuple[int, ...]
    cut: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

    @property
    def whole(self) -> bool:
        """Whether the values fill the memory in their order."""
        return self.cut is _twice and plain(self.values)

    def over(self, base: torch.Tensor) -> Placed:
        """Lay the tensor over memory that holds it already."""
        view, unique = self.cut(base)
        return Placed(view, base, unique)

    def put(self, base: torch.Tensor) -> Placed:
        """Write the tensor into memory, NaN around it."""
        placed = self.over(base)
        if placed.unique is not base:
            base.fill_(_filler(base.dtype))
        write(self.values, placed.unique)
        return placed


def place(values: torch.Tensor, layout: str, *, device: torch.device, turn: int = 0) -> Placed:
    """Copy `values` to `device` in a memory layout; the copy shares no memory with `values`.

    Args:
        values: CPU tensor of any shape.
        layout: one that `footprint` knows; or distant: the steps along time are so long that the last tokens lie more than
            2^31 elements from the first.
        device: where the target runs.
        turn: picks the flavour of "strided".

    Raises:
        UsageError: no layout has that name.
    """
    if layout == "distant":
        return _distant(values, device)
    found = footprint(values, layout, turn)
    return found.put(torch.empty(found.shape, dtype=values.dtype, device=device))


def footprint(values: torch.Tensor, layout: str, turn: int = 0) -> Footprint:
    """Say how `values` lie in a layout.

    Args:
        values: CPU tensor of any shape.
        layout: contiguous; strided: a slice of a wider buffer on every axis, with step 2 along time (even `turn`) or along
            the last axis (odd `turn`); offset: contiguous at a storage offset other than 0; expanded: stride 0 over the
            batch, or over the heads, or over everything, wherever the values agree there (else contiguous).
        turn: picks the flavour of "strided".

    Raises:
        UsageError: no layout has that name, or it is "distant", whose memory no other tensor may share.
    """
    if layout == "contiguous" or values.dim() == 0:
        return _whole(values)
    if layout == "strided":
        return _strided(values, along_last=turn % 2 == 1)
    if layout == "offset":
        return _offset(values)
    if layout == "expanded":
        return _expanded(values)
    raise UsageError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")


def same_bytes(first: int, second: int, size: int) -> bool:
    """Tell whether so many bytes from two addresses on are the same."""
    return int(_memcmp(first, second, size)) == 0


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors of equal shape and dtype hold the same bits (NaN equals the same NaN)."""
    if plain(first) and plain(second):
        return same_bytes(first.data_ptr(), second.data_ptr(), first.nbytes)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(first.element_size())
    if kind is None:
        return torch.equal(torch.view_as_real(first), torch.view_as_real(second))
    return torch.equal(first.view(kind), second.view(kind))


def plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's bytes lie on the CPU in the order of its elements, and are to be read as they are."""
    return tensor.is_cpu and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def write(values: torch.Tensor, over: torch.Tensor) -> torch.Tensor:
    """Copy values over a tensor of the same shape, and return that."""
    alike = values.dtype == over.dtype and values.shape == over.shape
    if not (alike and plain(values) and plain(over)):
        return over.copy_(values)
    ctypes.memmove(over.data_ptr(), values.data_ptr(), values.nbytes)  # for small tensors a third of the time
    return over


def _whole(values: torch.Tensor) -> Footprint:
    return Footprint(values, tuple(values.shape), _twice)


def _twice(base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return base, base


def _filler(dtype: torch.dtype) -> float | int:
    return math.nan if dtype.is_floating_point or dtype.is_complex else 0


def _strided(values: torch.Tensor, *, along_last: bool) -> Footprint:
    shape = list(values.shape)
    last = values.dim() - 1
    stepped = last if along_last else min(1, last) if values.dim() >= 3 else 0
    wide = tuple(2 * n if axis == stepped else n + (16 if axis == last else 1) for axis, n in enumerate(shape))
    taken = tuple(slice(0, 2 * n, 2) if axis == stepped else slice(0, n) for axis, n in enumerate(shape))

    def cut(base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        view = base[taken]
        return view, view

    return Footprint(values, wide, cut)


def _offset(values: torch.Tensor) -> Footprint:
    guard = max(1, _ALIGNED // values.element_size())

    def cut(base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        view = base[guard : guard + values.numel()].view(values.shape)
        return view, view

    return Footprint(values, (values.numel() + 2 * guard,), cut)


def _agrees(values: torch.Tensor, axis: int) -> bool:
    return same_bits(values, values.narrow(axis, 0, 1).expand_as(values))


def _expanded(values: torch.Tensor) -> Footprint:
    if values.numel() > 1 and same_bits(values, values.reshape(-1)[:1].expand(values.numel()).view(values.shape)):
        axes = tuple(range(values.dim()))
    else:
        # A batch or head axis of length 1 has nothing to expand; heads come after time or before it.
        axes = next(((a,) for a in (0, 2, 1, 3) if a < values.dim() and values.shape[a] > 1 and _agrees(values, a)), ())
    part = values[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(values.dim()))]
    return Footprint(part, tuple(part.shape), lambda base: (base.expand(values.shape), base))


def _distant(values: torch.Tensor, device: torch.device) -> Placed:
    axis = next((a for a in (1, 0) if a < values.dim() - 1 and values.shape[a] > 1), None)
    if axis is None:
        return place(values, "contiguous", device=device)
    # One block for each index of that axis, far from each other; what lies between is never touched.
    blocks = values.movedim(axis, 0).contiguous()
    step = -(-_REACH // (len(blocks) - 1) // 64) * 64
    base = _untouched((len(blocks) - 1) * step + blocks[0].numel(), values.dtype, device)
    view = base.as_strided(blocks.shape, (step, *blocks.stride()[1:])).movedim(0, axis)
    view.copy_(values)
    return Placed(view, view, view)


def _untouched(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory of `size` elements; on a CPU a page of it exists once it is written."""
    if device.type != "cpu":
        return torch.empty(size, dtype=dtype, device=device)
    memory = os.memfd_create("tensor")
    try:
        os.ftruncate(memory, size * dtype.itemsize)
        return torch.from_file(f"/proc/self/fd/{memory}", shared=True, size=size, dtype=dtype)
    finally:
        os.close(memory)
