"""Transfers between the CPU and a GPU, few and large: each small one costs as much as a small kernel.

Below STAGED bytes they go through page-locked memory, which torch keeps for the next time; beyond, that would be memory taken
from everybody else, and the copy is no longer what costs.
"""

from collections.abc import Iterable, Sequence

import torch

from linverify.layout import write
from linverify.room import Shelf
from linverify.wire import as_bytes

STAGED = 64 << 20  # bytes

_plain_empty = torch.empty  # as it was before anything replaced it


def staging(size: int, device: torch.device) -> torch.Tensor:
    """Return `size` bytes on the CPU from and to which copies of this device run fast; ordinary memory where none is left."""
    if device.type == "cuda" and size <= STAGED:
        try:
            return _plain_empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the system locks no more pages for this process
            pass
    return _plain_empty(size, dtype=torch.uint8)


def home(tensors: Sequence[torch.Tensor], shelf: Shelf | None = None) -> list[torch.Tensor]:
    """Return contiguous copies on the CPU, made in the order of the current streams; those of a GPU come in one transfer.

    Args:
        tensors: on any device.
        shelf: where copies of what lies on the CPU may lie.
    """
    found: dict[int, torch.Tensor] = {}
    # What is not a plain tensor may do as it likes with whatever it is put together with.
    plain = [i for i, t in enumerate(tensors) if type(t) is torch.Tensor and not t.is_complex()]
    for device in {tensors[i].device for i in plain}:
        places = [i for i in plain if tensors[i].device == device]
        if device.type == "cpu":
            found.update((i, _laid(tensors[i], shelf)) for i in places)
        elif sum(tensors[i].nbytes for i in places) <= STAGED:
            found.update(zip(places, _packed([tensors[i] for i in places]), strict=True))
    return [found[i] if i in found else _alone(t) for i, t in enumerate(tensors)]


def _packed(tensors: Sequence[torch.Tensor]) -> Iterable[torch.Tensor]:
    """Copies in one piece of memory; the widest elements lie first, so that all are aligned."""
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
    there = torch.cat([as_bytes(tensors[i].detach().contiguous()) for i in order])
    flat = staging(there.numel(), there.device).copy_(there, non_blocking=True)
    torch.cuda.synchronize(there.device)
    ends, found = 0, {}
    for i in order:
        size, tensor = tensors[i].nbytes, tensors[i]
        found[i] = flat[ends : ends + size].view(tensor.dtype).view(tensor.shape)
        ends += size
    return (found[i] for i in range(len(tensors)))


def _laid(tensor: torch.Tensor, shelf: Shelf | None) -> torch.Tensor:
    copy = None if shelf is None else shelf.empty((tensor.dtype, tuple(tensor.shape)))
    return _alone(tensor) if copy is None else write(tensor.detach(), copy)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    # A copy even on the CPU: a later call may overwrite the memory, and a reread must not see the first reading.
    return torch.Tensor.clone(tensor.detach().cpu(), memory_format=torch.contiguous_format)
