"""Poison: fresh memory is filled before the target sees it, so that an element it never wrote is seen at once.

WHY. Memory that nobody wrote is usually zero in a short test and rubbish in a long training run. ``torch.empty``,
``torch.zeros`` and their relatives are replaced before the target is imported (names that it copies are replaced too). Only
while a call runs do they differ from the originals: fresh memory is filled, and lies between the guard bands of a fence. On
CUDA the caching allocator is besides left with dirty blocks of the sizes that results have, for allocations made inside C++.
"""

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from linverify.fence import Fence, plain_empty

_M_PERTURB = -6  # of glibc's malloc.h
_FACTORIES = ("empty", "empty_like", "empty_strided", "empty_permuted")
_METHODS = ("new_empty", "new_empty_strided")
_WRITTEN_FACTORIES = ("zeros", "zeros_like", "ones", "ones_like", "full", "full_like")
_WRITTEN_METHODS = ("new_zeros", "new_ones", "new_full")
# What a fence holds when it is made is a NaN of these already.
_NAN_IN_A_FENCE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class _Poison:
    """What fresh memory is filled with now ("nan", "large", or nothing), and the fence around it."""

    pattern: str | None = None
    fence: Fence | None = None


def install() -> None:
    """Replace the functions of torch that return fresh memory; a second call does nothing."""
    if hasattr(torch.empty, "__wrapped__"):
        return
    for holder, names, filled in (
        (torch, _FACTORIES, True),
        (torch.Tensor, _METHODS, True),
        (torch, _WRITTEN_FACTORIES, False),
        (torch.Tensor, _WRITTEN_METHODS, False),
    ):
        for name in names:
            original = getattr(holder, name, None)
            if original is not None:
                setattr(holder, name, _replaced(original, filled=filled))


@contextmanager
def poisoned(pattern: str, fence: Fence) -> Iterator[None]:
    """Fill fresh memory with `pattern` ("nan" or "large") within the block, and put `fence` around it."""
    before = _Poison.pattern, _Poison.fence
    _Poison.pattern, _Poison.fence = pattern, fence
    try:
        yield
    finally:
        _Poison.pattern, _Poison.fence = before


def is_active(pattern: str, fence: Fence) -> bool:
    """Tell whether fresh memory is treated as `poisoned(pattern, fence)` asked: nobody has switched it off."""
    return _Poison.pattern == pattern and _Poison.fence is fence


def perturb_heap() -> None:
    """Have the C library fill every block that it hands out in this process, whoever asks: C++ code, NumPy, torch.

    0xFE in every byte is -1.7e38 as float32 and bfloat16, NaN as float16. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_PERTURB, 0xFE ^ 0xFF)


def dirty(sizes: Iterable[tuple[int, torch.dtype]], pattern: str, device: torch.device) -> None:
    """Leave blocks of these sizes (elements, dtype) filled with `pattern` in CUDA's caching allocator, on a GPU."""
    blocks: dict[torch.dtype, list[torch.Tensor]] = {}
    for n, dtype in sizes:
        blocks.setdefault(dtype, []).extend(plain_empty(n, dtype=dtype, device=device) for _ in range(2))
    # two launches, not one a block; one where a NaN remains whatever it is added to
    for dtype, alike in blocks.items():
        if pattern != "nan" or not dtype.is_floating_point:
            torch._foreach_zero_(alike)
        torch._foreach_add_(alike, value(dtype, pattern))


def value(dtype: torch.dtype, pattern: str) -> float | int | bool:
    """What a fresh element of this dtype is filled with; finite for "large"."""
    if dtype == torch.bool:
        return True
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan if pattern == "nan" else torch.finfo(dtype).max / 4
    return torch.iinfo(dtype).max


def _replaced(original: Callable[..., Any], *, filled: bool) -> Callable[..., Any]:
    """The same function; while a call runs, its memory is fenced, and poisoned where `filled`."""

    @functools.wraps(original)
    def allocate(*args: Any, **kwargs: Any) -> Any:
        fresh = original(*args, **kwargs)
        pattern, fence = _Poison.pattern, _Poison.fence
        if pattern is None or fence is None or kwargs.get("out") is not None or not _ordinary(fresh):
            return fresh
        try:
            with torch.no_grad():
                inside = fence.empty(fresh.shape, fresh.dtype, fresh.device, original.__name__, fresh.stride())
                if filled and not (pattern == "nan" and fresh.dtype in _NAN_IN_A_FENCE):
                    inside.fill_(value(fresh.dtype, pattern))
                elif not filled:
                    inside.copy_(fresh)
        except (RuntimeError, TypeError):
            # A dtype without fill (a packed or quantised one) stays as it came: poison must never break a kernel.
            return fresh
        return inside.requires_grad_() if fresh.requires_grad else inside

    return allocate


def _ordinary(fresh: Any) -> bool:
    return (
        type(fresh) is torch.Tensor
        and fresh.device.type in ("cpu", "cuda")
        and fresh.layout is torch.strided
        and bool(fresh.numel())
        and not (fresh.device.type == "cpu" and torch.cuda.is_initialized() and fresh.is_pinned())
    )
