"""Messages between the session and its workers: a JSON header and raw tensor bytes, on a pipe of their own.

WHY. Kernels print, close standard output and are not to be trusted, so messages never travel on stdin or stdout and are
never unpickled. A message is

    8 bytes magic | 8 bytes header length | header (UTF-8 JSON) | the tensors' bytes, in the header's order

and the header says of each tensor its dtype and shape. Tensors are written from, and read into, their own memory.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

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
    fd: int, body: Mapping[str, Any], tensors: Sequence[torch.Tensor] = (), *, wait: Callable[[], None] | None = None
) -> None:
    """Write one message.

    Args:
        fd: a file descriptor open for writing.
        body: what JSON can carry.
        tensors: CPU tensors of any strides.
        wait: called when a descriptor that does not block is full; may raise to give up. None: `fd` blocks.

    Raises:
        OSError: the other side is gone (BrokenPipeError).
    """
    for buffer in _batches(_frame(body, tensors)):
        _write_all(fd, buffer, wait)


def receive(fd: int, *, wait: Callable[[], None] | None = None) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Read one message.

    Args:
        fd: a file descriptor open for reading.
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
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"unreadable header: {error}") from None
    tensors = []
    for dtype, shape in shapes:
        try:
            storage = torch.empty(math.prod(shape), dtype=dtype)
        except (RuntimeError, OverflowError) as error:
            raise WireError(f"no room for a tensor of shape {shape}: {str(error).splitlines()[0]}") from None
        if storage.numel():
            _read_into(fd, _bytes_of(storage), wait)
        tensors.append(storage.reshape(shape))
    return body, tensors


def _frame(body: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> list[memoryview]:
    flat = [t.detach().contiguous() for t in tensors]
    header = json.dumps(
        {"body": body, "tensors": [(_NAMES[t.dtype], list(t.shape)) for t in flat]}, separators=(",", ":")
    ).encode()
    small = memoryview(_PREFIX.pack(_MAGIC, len(header)) + header)
    return [small, *(_bytes_of(t) for t in flat if t.numel())]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    # NumPy has no bfloat16: the bytes are looked at as uint8, which every dtype allows.
    return tensor.reshape(-1).view(torch.uint8).numpy().data


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
