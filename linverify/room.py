"""A room: a file in memory that the session and a worker hold, in which tensors lie for the other to read.

Each byte is copied once by whoever lays it down, and neither waits for the other to empty a pipe. A question's tensors lie in
the first half, an answer's in the second. The file is sealed at its size before the worker is started: nobody can cut it short
under a reader, who would be killed for reading. Pages of it that nobody has written take no memory.
"""

import contextlib
import ctypes
import fcntl
import math
import mmap
import os
from collections.abc import Sequence
from typing import Self

import torch

SIZE = 64 << 20  # bytes of each half; what is larger travels by the pipe
_ALIGNED = 64  # bytes; where a tensor begins
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# As it was before anything replaced it.
_plain_empty = torch.empty

# dtype, shape
Form = tuple[torch.dtype, tuple[int, ...]]


def create() -> int:
    """Return the descriptor of a new file for a room, of no use where the system gives none of its size."""
    fd = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with contextlib.suppress(OSError):  # a limit on the size of files, say; `Room.over` sees it
        os.ftruncate(fd, 2 * SIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


class Shelf:
    """One half: tensors one behind the other, each at its place, counted in bytes from the beginning of the half."""

    def __init__(self, memory: mmap.mmap, start: int) -> None:
        """Nothing lies there yet.

        Args:
            memory: the whole file.
            start: where in it this half begins.
        """
        self._memory, self._start, self._end = memory, start, 0
        self._address = torch.frombuffer(memory, dtype=torch.uint8, count=1, offset=start).data_ptr()

    def clear(self) -> None:
        """Forget what lies there: it may be written over."""
        self._end = 0

    def empty(self, form: Form) -> torch.Tensor | None:
        """Return a tensor on the shelf, of rubbish; None where there is no space left."""
        size, place = _nbytes(form), self._end
        if place + size > SIZE:
            return None
        self._end = _aligned(place + size)
        return self._at(place, form)

    def put(self, tensors: Sequence[torch.Tensor]) -> list[int] | None:
        """Lay down contiguous tensors that do not lie here yet; the place of each, None where there is no space for all."""
        places = []
        for tensor in tensors:
            place, size = tensor.data_ptr() - self._address, tensor.nbytes
            if not 0 <= place < self._end or not size:
                place = self._end
                if place + size > SIZE:
                    return None
                ctypes.memmove(self._address + place, tensor.data_ptr(), size)
                self._end = _aligned(place + size)
            places.append(place)
        return places

    def shown(self, forms: Sequence[Form], places: Sequence[int]) -> list[torch.Tensor]:
        """Return the tensors as they lie there; they change with what is laid down next.

        Raises:
            ValueError: one reaches beyond the shelf.
        """
        _span(forms, places)
        return [self._at(place, form) for form, place in zip(forms, places, strict=True)]

    def copied(self, forms: Sequence[Form], places: Sequence[int]) -> list[torch.Tensor]:
        """Return copies, made before anything of them is looked at: nothing that is written there later changes them.

        Raises:
            ValueError: one reaches beyond the shelf.
        """
        begin, end = _span(forms, places)
        whole = _plain_empty(end - begin, dtype=torch.uint8)
        ctypes.memmove(whole.data_ptr(), self._address + begin, end - begin)
        return [
            whole[place - begin : place - begin + _nbytes(form)].view(form[0]).view(form[1])
            for form, place in zip(forms, places, strict=True)
        ]

    def _at(self, place: int, form: Form) -> torch.Tensor:
        dtype, shape = form
        count = math.prod(shape)
        if not count:
            return _plain_empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._start + place).view(shape)


class Room:
    """Both halves.

    Attributes:
        question: what the session asks with.
        answer: what the worker answers with.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        """Take the file as it is mapped."""
        self.question, self.answer = Shelf(memory, 0), Shelf(memory, SIZE)

    @classmethod
    def over(cls, fd: int) -> Self | None:
        """Return the room in a file of `create`; None where it is not sealed at its size, or cannot be mapped."""
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != 2 * SIZE:
                return None
            return cls(mmap.mmap(fd, 2 * SIZE))
        except (OSError, ValueError):
            return None


def _aligned(place: int) -> int:
    return -(-place // _ALIGNED) * _ALIGNED


def _nbytes(form: Form) -> int:
    return math.prod(form[1]) * form[0].itemsize


def _span(forms: Sequence[Form], places: Sequence[int]) -> tuple[int, int]:
    """First byte of all tensors, and one past the last."""
    end = 0
    for form, place in zip(forms, places, strict=True):
        stop = place + _nbytes(form)
        if place < 0 or place % _ALIGNED or stop > SIZE:
            raise ValueError(f"a tensor at {place} to {stop} of {SIZE} bytes")
        end = max(end, stop)
    return min(places, default=0), end
