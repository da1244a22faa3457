"""Messages between the session and its workers: a JSON header and raw tensor bytes, on a pipe of their own.

WHY. Kernels print, close standard output and are not to be trusted, so messages never travel on stdin or stdout and are
never unpickled. A message is

    8 bytes magic | 8 bytes header length | header (UTF-8 JSON) | the tensors' bytes, in the header's order

and the header says of each tensor its dtype and shape. Where both sides hold a room, the tensors of an ordinary message lie
there instead, and the header says where. The session has copies of its own before it looks at any of them.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from linverify.room import Shelf

_MAGIC = b"linverif"
_PREFIX = struct.Struct("<8sQ")
_HEADER_LIMIT = 1 << 26  # bytes; a longer header can only be rubbish
_VECTORS = 64  # buffers a single writev takes; well below IOV_MAX
_PIECE = 1 << 20

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "f8",
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "b2",
    torch.complex64: "c8",
    torch.complex128: "c16",
    torch.int64: "i8",
    torch.int32: "i4",
    torch.int16: "i2",
    torch.int8: "i1",
    torch.uint8: "u1",
    torch.bool: "?",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class WireError(Exception):
    """What arrived is no message of this protocol."""


class EndOfStreamError(Exception):
    """The other side closed the pipe before a message was complete."""


def carries(dtype: torch.dtype) -> bool:
    """Tell whether a tensor of this dtype can travel."""
    return dtype in _NAMES


def send(
    fd: int,
    body: Mapping[str, Any],
    tensors: Sequence[torch.Tensor] = (),
    *,
    shelf: Shelf | None = None,
    wait: Callable[[], None] | None = None,
) -> None:
    """Write one message.

    Args:
        fd: a file descriptor open for writing.
        body: what JSON can carry.
        tensors: CPU tensors of any strides.
        shelf: where the tensors are laid down, or lie; None where there is no room.
        wait: called when a descriptor that does not block is full; may raise to give up. None: `fd` blocks.

    Raises:
        OSError: the other side is gone (BrokenPipeError).
    """
    flat = [t.detach().contiguous() for t in tensors]
    places = None if shelf is None else shelf.put(flat)
    layout = [(_NAMES[t.dtype], t.shape) for t in flat]
    header = json.dumps({"body": body, "tensors": layout, "places": places}).encode()
    small = memoryview(_PREFIX.pack(_MAGIC, len(header)) + header)
    for buffers in _batches([small, *(() if places is not None else (_bytes_of(t) for t in flat if t.numel()))]):
        _write_all(fd, buffers, wait)


def receive(
    fd: int, *, shelf: Shelf | None = None, copied: bool = True, wait: Callable[[], None] | None = None
) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Read one message.

    Args:
        fd: a file descriptor open for reading.
        shelf: where the sender laid the tensors down.
        copied: whether the tensors are copies; those in place change when the next message is sent.
        wait: called before every read; may raise to give up (the caller's deadline). None blocks.

    Raises:
        EndOfStreamError: the pipe was closed.
        WireError: what came is no message.
    """
    prefix = bytearray(_PREFIX.size)
    _read_into(fd, memoryview(prefix), wait)
    magic, length = _PREFIX.unpack(prefix)
    if magic != _MAGIC or length > _HEADER_LIMIT:
        raise WireError(f"expected a message that starts with {_MAGIC!r}, got {bytes(prefix)!r}")
    header = bytearray(length)
    _read_into(fd, memoryview(header), wait)
    try:
        content = json.loads(header)
        body, layout = content["body"], content["tensors"]
        shapes = [(_DTYPES[name], tuple(int(n) for n in shape)) for name, shape in layout]
        if not isinstance(body, dict) or any(n < 0 for _, shape in shapes for n in shape):
            raise ValueError("negative size or no body")
        places = content.get("places")
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"unreadable header: {error}") from None
    if places is not None:
        return body, _laid(shelf, shapes, places, copied=copied)
    tensors = []
    for dtype, shape in shapes:
        storage = _fresh(math.prod(shape), dtype)
        if storage.numel():
            _read_into(fd, _bytes_of(storage), wait)
        tensors.append(storage.reshape(shape))
    return body, tensors


def _fresh(size: int, dtype: torch.dtype) -> torch.Tensor:
    try:
        return torch.empty(size, dtype=dtype)
    except (RuntimeError, OverflowError) as error:
        raise WireError(f"no room for {size} elements of {dtype}: {str(error).splitlines()[0]}") from None


def _laid(
    shelf: Shelf | None, shapes: Sequence[tuple[torch.dtype, tuple[int, ...]]], places: object, *, copied: bool
) -> list[torch.Tensor]:
    """The tensors of a message that lie on a shelf."""
    if shelf is None:
        raise WireError("there is no room in which the message's tensors could lie")
    if not isinstance(places, list) or any(type(p) is not int for p in places) or len(places) != len(shapes):
        raise WireError(f"unreadable header: {len(shapes)} tensors at {places!r:.60}")
    try:
        return shelf.copied(shapes, places) if copied else shelf.shown(shapes, places)
    except ValueError as error:
        raise WireError(f"no room holds the message's tensors: {error}") from None


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a contiguous tensor's bytes, [bytes]; the stride of an only element, which says nothing, may be any."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    # NumPy has no bfloat16: the bytes are looked at as uint8, which every dtype allows.
    return as_bytes(tensor).numpy().data


def _batches(buffers: list[memoryview]) -> list[list[memoryview]]:
    return [buffers[i : i + _VECTORS] for i in range(0, len(buffers), _VECTORS)]


def _write_all(fd: int, buffers: list[memoryview], wait: Callable[[], None] | None) -> None:
    while buffers:
        try:
            written = os.writev(fd, buffers)
        except BlockingIOError:
            if wait is None:
                raise
            wait()
            continue
        while buffers and written >= len(buffers[0]):
            written -= len(buffers.pop(0))
        if written:
            buffers[0] = buffers[0][written:]


def _read_into(fd: int, target: memoryview, wait: Callable[[], None] | None) -> None:
    while target:
        if wait is not None:
            wait()
        got = os.readv(fd, [target[:_PIECE]])
        if not got:
            raise EndOfStreamError("the pipe was closed")
        target = target[got:]
