"""Messages arrive whole, by the pipe and by the file, and what is no message is said to be none."""

import json
import os
import struct
from collections.abc import Iterator

import pytest
import torch

from linverify import wire

TENSORS = (
    torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).transpose(0, 2),
    torch.tensor(3, dtype=torch.int64),
    torch.empty(0, 5, dtype=torch.bfloat16),
    torch.tensor([True, False]),
    torch.full((5,), float("nan"), dtype=torch.float16),
    torch.arange(32.0)[16::16],  # one element: it counts as contiguous, and strides 16
)


class Line:
    """A pipe, and a file in memory beside it."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.room = os.memfd_create("test")

    def close(self) -> None:
        for fd in (self.read, self.write, self.room):
            os.close(fd)


@pytest.fixture
def line() -> Iterator[Line]:
    found = Line()
    yield found
    found.close()


def waiting(fd: int) -> int:
    """Bytes in a pipe."""
    import fcntl
    import termios

    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"0000"))[0])


def same(found: list[torch.Tensor]) -> bool:
    return all(
        (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(found, TENSORS, strict=True)
    )


@pytest.mark.parametrize("filed", [True, False])
def test_a_message_arrives_whole(line: Line, filed: bool) -> None:
    room = line.room if filed else None
    for body in ({"ask": 1}, {"ask": "again"}):
        wire.send(line.write, body, TENSORS, room=room)
        found, tensors = wire.receive(line.read, room=room)
        assert found == body
        assert same(tensors)
    assert waiting(line.read) == 0


def test_the_receiver_has_a_copy_of_its_own(line: Line) -> None:
    wire.send(line.write, {}, TENSORS, room=line.room)
    _, tensors = wire.receive(line.read, room=line.room)
    os.pwrite(line.room, b"\x01" * 512, 0)
    os.ftruncate(line.room, 0)
    assert same(tensors)


def test_what_does_not_fit_the_file_goes_by_the_pipe(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_ROOM", 100)
    wire.send(line.write, {}, TENSORS, room=line.room)
    assert os.fstat(line.room).st_size == 0
    assert same(wire.receive(line.read, room=line.room)[1])


def test_a_file_that_takes_nothing_is_passed_by(line: Line) -> None:
    closed = os.open("/dev/null", os.O_RDONLY)
    wire.send(line.write, {}, TENSORS, room=closed)
    os.close(closed)
    assert same(wire.receive(line.read, room=line.room)[1])


def test_a_file_that_was_cut_short_is_no_message(line: Line) -> None:
    wire.send(line.write, {}, TENSORS, room=line.room)
    os.ftruncate(line.room, 10)
    with pytest.raises(wire.WireError, match=r"expected \d+ bytes of tensors, got 10"):
        wire.receive(line.read, room=line.room)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ([["f4", [1 << 40]]], "no file holds"),
        ([["f4", [-1]]], "negative size"),
        ([["f5", [1]]], "f5"),
    ],
)
def test_a_claim_that_no_file_bears_out_is_no_message(line: Line, layout: list[object], words: str) -> None:
    header = json.dumps({"body": {}, "tensors": layout, "apart": True}).encode()
    os.write(line.write, struct.pack("<8sQ", b"linverif", len(header)) + header)
    with pytest.raises(wire.WireError, match=words):
        wire.receive(line.read, room=line.room)


def test_a_message_by_file_needs_the_file(line: Line) -> None:
    wire.send(line.write, {}, TENSORS, room=line.room)
    with pytest.raises(wire.WireError, match="no file holds"):
        wire.receive(line.read)
