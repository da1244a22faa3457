"""Messages arrive whole, by the pipe and by the room, and what is no message is said to be none."""

import fcntl
import json
import os
import resource
import signal
import struct
from collections.abc import Iterator

import pytest
import torch

from linverify import room, wire
from linverify.room import Room

TENSORS = (
    torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).transpose(0, 2),
    torch.tensor(3, dtype=torch.int64),
    torch.empty(0, 5, dtype=torch.bfloat16),
    torch.tensor([True, False]),
    torch.full((5,), float("nan"), dtype=torch.float16),
    torch.arange(32.0)[16::16],  # one element: it counts as contiguous, and strides 16
)


class Line:
    """A pipe, and a room beside it as both sides have it."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        self.file = room.create()
        ours, theirs = Room.over(self.file), Room.over(self.file)
        assert ours is not None
        assert theirs is not None
        self.shelf, self.their_shelf = ours.question, theirs.question

    def close(self) -> None:
        for fd in (self.read, self.write, self.file):
            os.close(fd)


@pytest.fixture
def line() -> Iterator[Line]:
    found = Line()
    yield found
    found.close()


def waiting(fd: int) -> int:
    """Bytes in a pipe."""
    import termios

    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"0000"))[0])


def same(found: list[torch.Tensor]) -> bool:
    return all(
        (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(found, TENSORS, strict=True)
    )


@pytest.mark.parametrize("laid", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_a_message_arrives_whole(line: Line, laid: bool, copied: bool) -> None:
    for body in ({"ask": 1}, {"ask": "again"}):
        line.shelf.clear()
        wire.send(line.write, body, TENSORS, shelf=line.shelf if laid else None)
        assert waiting(line.read) < 500 + (0 if laid else sum(t.nbytes for t in TENSORS))
        found, tensors = wire.receive(line.read, shelf=line.their_shelf, copied=copied)
        assert found == body
        assert same(tensors)
    assert waiting(line.read) == 0


def test_what_lies_there_already_is_not_laid_down_again(line: Line) -> None:
    lying = []
    for tensor in TENSORS:
        place = line.shelf.empty((tensor.dtype, tuple(tensor.shape)))
        assert place is not None
        lying.append(place.copy_(tensor))
    end = line.shelf._end
    wire.send(line.write, {}, [*lying, torch.ones(3)], shelf=line.shelf)
    assert line.shelf._end == end + 64
    *found, last = wire.receive(line.read, shelf=line.their_shelf)[1]
    assert same(found)
    assert last.tolist() == [1, 1, 1]


def test_the_receiver_has_a_copy_of_its_own(line: Line) -> None:
    wire.send(line.write, {}, TENSORS, shelf=line.shelf)
    _, tensors = wire.receive(line.read, shelf=line.their_shelf)
    os.pwrite(line.file, b"\x01" * 512, 0)
    assert same(tensors)


def test_nobody_cuts_a_room_short(line: Line) -> None:
    for size in (0, room.SIZE, 4 * room.SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(line.file, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(line.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_file_that_could_be_cut_short_is_no_room() -> None:
    unsealed = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 2 * room.SIZE)
    assert Room.over(unsealed) is None
    small = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(small, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    assert Room.over(small) is None
    plain = os.open("/dev/null", os.O_RDONLY)
    assert Room.over(plain) is None
    for fd in (unsealed, small, plain):
        os.close(fd)


def test_without_a_file_of_its_size_there_is_no_room() -> None:
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room.SIZE, known[1]))
    try:
        fd = room.create()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, known)
        signal.signal(signal.SIGXFSZ, before)
    assert Room.over(fd) is None
    os.close(fd)


def test_what_does_not_fit_a_room_goes_by_the_pipe(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SIZE", 100)
    wire.send(line.write, {}, TENSORS, shelf=line.shelf)
    assert waiting(line.read) > sum(t.nbytes for t in TENSORS)
    assert line.shelf.empty((torch.float32, (26,))) is None
    assert same(wire.receive(line.read, shelf=line.their_shelf)[1])


@pytest.mark.parametrize(
    ("layout", "places", "words"),
    [
        ([["f4", [1 << 40]]], [0], "no room holds"),
        ([["f4", [1]]], [room.SIZE], "no room holds"),
        ([["f4", [1]]], [-64], "no room holds"),
        ([["f4", [1]]], [2], "no room holds"),
        ([["f4", [1]]], [], "1 tensors at"),
        ([["f4", [1]]], [0.0], "1 tensors at"),
        ([["f4", [1]]], 0, "1 tensors at"),
        ([["f4", [-1]]], [0], "negative size"),
        ([["f5", [1]]], [0], "f5"),
    ],
)
def test_a_claim_that_no_room_bears_out_is_no_message(line: Line, layout: object, places: object, words: str) -> None:
    header = json.dumps({"body": {}, "tensors": layout, "places": places}).encode()
    for copied in (True, False):
        os.write(line.write, struct.pack("<8sQ", b"linverif", len(header)) + header)
        with pytest.raises(wire.WireError, match=words):
            wire.receive(line.read, shelf=line.their_shelf, copied=copied)


def test_a_message_by_room_needs_the_room(line: Line) -> None:
    wire.send(line.write, {}, TENSORS, shelf=line.shelf)
    with pytest.raises(wire.WireError, match="there is no room"):
        wire.receive(line.read)
