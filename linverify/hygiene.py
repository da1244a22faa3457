"""In the worker: whose memory a result lies in, whether it is finished, and whether anybody keeps it.

WHY. A result that shares memory with an input, with another result or with a buffer kept for the next call has the right values
when a test looks at it, and other values later. Addresses say it at once, before any value is wrong.
"""

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch

from linverify.problem import Breach
from linverify.suspicion import Suspicion, differ

_EXACT_ELEMENTS = 1 << 22  # beyond that, overlapping spans count as shared memory

Named = Mapping[str, torch.Tensor]
# Addresses on the tensor's device.
_Span = tuple[int, int]


def aliases(results: Named, others: Named) -> Iterator[Breach]:
    """Yield a breach for each result that has an element in common with another result or with one of `others`.

    Args:
        results: o and the final state, by name.
        others: inputs and earlier results, by what a reader calls them.
    """
    held: list[tuple[str, torch.Tensor, _Span]] = []
    spans = [(name, tensor, _span(tensor)) for name, tensor in others.items()] if results else []
    for name, tensor in results.items():
        span = _span(tensor)
        for other, one, its in (*held, *spans):
            if _share(tensor, span, one, its):
                yield Breach("aliased", f"{name} shares memory with {other}")
        held.append((name, tensor, span))


def copies(results: Named) -> dict[str, torch.Tensor]:
    """Copies made on the current stream, without waiting for any other."""
    return {name: tensor.detach().clone() for name, tensor in results.items()}


def unfinished(results: Named, early: Named) -> Iterator[Suspicion]:
    """Yield, for each result, whether it has other bits now than when the function returned.

    On a GPU `early` was copied in the order of the current stream; what another stream writes is not in it.
    """
    for name, tensor in results.items():
        yield Suspicion(differ(tensor.detach(), early[name]), partial(_late, name))


def _late(name: str) -> Iterator[Breach]:
    yield Breach("late_write", f"{name} was still being written when the function had returned it")


def kept(calls: Sequence[Mapping[str, torch.UntypedStorage]]) -> dict[int, tuple[Breach, ...]]:
    """Return, by number of the call, what is held by somebody besides the caller, who has let go of every tensor in it."""
    if not any(holders(storage) > 1 for results in calls for storage in results.values()):
        return {}
    gc.collect()  # reference cycles are nobody's intention
    return {
        number: tuple(
            Breach("kept_result", f"the memory of {name} is kept by the function after the call")
            for name, storage in results.items()
            if holders(storage) > 1
        )
        for number, results in enumerate(calls)
    }


def holders(storage: torch.UntypedStorage) -> int:
    """How many hold a storage, this very name of it counted."""
    return int(torch._C._storage_Use_Count(storage._cdata))


def _share(first: torch.Tensor, span: _Span, second: torch.Tensor, its: _Span) -> bool:
    (a, b), (c, d) = span, its
    if b <= c or d <= a or first.device != second.device or not first.numel() or not second.numel():
        return False
    if first.element_size() != second.element_size() or max(first.numel(), second.numel()) > _EXACT_ELEMENTS:
        return True
    # Slices of one fused buffer lie between each other and share nothing.
    return bool(torch.isin(_addresses(first), _addresses(second)).any())


def _span(tensor: torch.Tensor) -> _Span:
    """First byte, and one past the last."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + reach * tensor.element_size()


def _addresses(tensor: torch.Tensor) -> torch.Tensor:
    places = torch.zeros((), dtype=torch.int64)
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places.unsqueeze(-1) + torch.arange(n) * stride
    assert places.numel() == math.prod(tensor.shape)
    return places.reshape(-1) * tensor.element_size() + tensor.data_ptr()
