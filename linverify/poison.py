"""Poison: fresh memory is filled before the target sees it, so that an element it never wrote is seen at once.

WHY. Memory that nobody wrote is usually zero in a short test and rubbish in a long training run. ``torch.empty`` and
its relatives are replaced before the target is imported (names that it copies are replaced too) and fill only while a
call runs; outside a call they are the originals. On CUDA the caching allocator is besides left with dirty blocks of
the sizes that results have, for allocations made inside C++.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FACTORIES = ("empty", "empty_like", "empty_strided", "empty_permuted")
_METHODS = ("new_empty", "new_empty_strided")


class _Poison:
    """What fresh memory is filled with now: "nan", "large", or nothing."""

    pattern: str | None = None


def install() -> None:
    """Replace the functions of torch that return uninitialised memory; a second call does nothing."""
    if hasattr(torch.empty, "__wrapped__"):
        return
    for holder, names in ((torch, _FACTORIES), (torch.Tensor, _METHODS)):
        for name in names:
            original = getattr(holder, name, None)
            if original is not None:
                setattr(holder, name, _filling(original))


@contextmanager
def poisoned(pattern: str) -> Iterator[None]:
    """Fill fresh memory with `pattern` ("nan" or "large") within the block."""
    before, _Poison.pattern = _Poison.pattern, pattern
    try:
        yield
    finally:
        _Poison.pattern = before


def dirty(sizes: Iterable[tuple[int, torch.dtype]], pattern: str, device: torch.device) -> None:
    """Leave blocks of these sizes (elements, dtype) filled with `pattern` in CUDA's caching allocator."""
    if device.type != "cuda":
        return
    blocks = [
        torch.full((n,), value(dtype, pattern), dtype=dtype, device=device) for n, dtype in sizes for _ in range(2)
    ]
    del blocks


def value(dtype: torch.dtype, pattern: str) -> float | int | bool:
    """What a fresh element of this dtype is filled with; finite for "large"."""
    if dtype == torch.bool:
        return True
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan if pattern == "nan" else torch.finfo(dtype).max / 4
    return torch.iinfo(dtype).max


def _filling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def allocate(*args: Any, **kwargs: Any) -> Any:
        fresh = original(*args, **kwargs)
        pattern = _Poison.pattern
        if pattern is not None and kwargs.get("out") is None and fresh.device.type != "meta" and fresh.numel():
            try:
                with torch.no_grad():
                    fresh.fill_(value(fresh.dtype, pattern))
            except (RuntimeError, TypeError):
                # A dtype without fill (a packed or quantised one) stays as it came: poison must never break a kernel.
                return fresh
        return fresh

    return allocate
