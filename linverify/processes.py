"""In the session: the processes of the workers, seen from outside.

A `Server` is a fork server that has imported torch; sessions of one kind share it. A `Child` is a process forked by a
server (a host or a runner): its pipes, its log, its end. Waiting for a child means waiting for its answer, its log,
its end and the deadline at once.
"""

import atexit
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from linverify import ahead, interrupts, wire
from linverify.errors import CannotCheckError
from linverify.fingerprint import fingerprint
from linverify.room import Room, create

_LOG_BYTES = 8192
_PIPE_BYTES = 1 << 20
_GREETING_SECONDS = 300.0
_PATIENCE = 1.0  # seconds between the end of a pipe and the end of its process


class EndedError(Exception):
    """The child's process ended; `status` is as of os.waitpid, None where its server ended too."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"wait status {status}")
        self.status = status


class DeadlineError(Exception):
    """The child did not answer before the deadline."""


class Server:
    """A fork server: one process, started once, asked by datagrams."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it, unless that was foreseen, and shake hands.

        Raises:
            CannotCheckError: it does not start, or runs another linverify than this process.
        """
        started = ahead.taken(environment)
        self.control, self._process, self._errors = started.channel, started.process, started.errors
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        self.control.settimeout(_GREETING_SECONDS)
        try:
            greeting = self.control.recv(1 << 16)
        except TimeoutError:
            raise CannotCheckError(f"the worker did not start within {_GREETING_SECONDS:.0f} s") from None
        self.control.settimeout(None)
        if not greeting:
            self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            raise CannotCheckError(f"the worker did not start: {lines[-1] if lines else 'it ended without a word'}")
        theirs, ours = json.loads(greeting), fingerprint()
        wrong = [key for key in ours if theirs.get(key) != ours[key]]
        if wrong:
            differences = ", ".join(f"{key} {theirs.get(key)} instead of {ours[key]}" for key in wrong)
            raise CannotCheckError(
                f"the worker runs another linverify: {differences}; install one only, or start again"
            )

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it and every child; idempotent."""
        self.control.close()
        try:
            self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Borrowed:
    """A fork server of the process that started this one, which shares it among several."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self._news = select.poll()
        self._news.register(control, 0)  # its end is told unasked

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return not self._news.poll(0)

    def close(self) -> None:
        """Leave it to the others; idempotent."""
        self.control.close()


_servers: dict[tuple[int, str], Server | Borrowed] = {}
_lock = threading.Lock()


def shared_server(environment: Mapping[str, str]) -> Server | Borrowed:
    """Return this process's fork server for an environment; start it at the first request."""
    key = (os.getpid(), ahead.name_of(environment))
    with _lock:
        server = _servers.get(key)
        if server is None or not server.alive:
            if server is not None:
                server.close()
            server = _servers[key] = Server(environment)
        return server


def begun(environment: Mapping[str, str]) -> socket.socket:
    """Return the socket of this process's fork server for an environment; it may still be starting."""
    known = _servers.get((os.getpid(), ahead.name_of(environment)))
    return known.control if known is not None and known.alive else ahead.server(environment).channel


def borrow(control: socket.socket, name: str) -> None:
    """Use the fork server of another process, by that name, as this one's."""
    _servers[os.getpid(), name] = Borrowed(control)


@atexit.register
def _close_servers() -> None:
    interrupts.no_more()
    for (owner, _), server in list(_servers.items()):
        if owner == os.getpid():
            server.close()
    _servers.clear()


class Child:
    """A process forked by a server: a pipe each way, a file in memory for tensors, a log, and news of its end."""

    def __init__(self, control: socket.socket, request: Mapping[str, Any], *, with_control: bool = False) -> None:
        """Ask the server behind `control` for a child; with_control gives the child a control socket of its own.

        Raises:
            OSError: the server is gone.
        """
        self.log = bytearray()
        self.control: socket.socket | None = None
        self._status: int | None = None
        self._ended = False
        self.pid = 0
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        their_read, write = os.pipe2(os.O_CLOEXEC)
        read, their_write = os.pipe2(os.O_CLOEXEC)
        log_read, their_log = os.pipe2(os.O_CLOEXEC)
        room = create()
        self._room: Room | None = None
        self._fds = {"status": status_read, "write": write, "read": read, "log": log_read, "room": room}
        theirs = [status_write, their_read, their_write, their_log, room]
        their_control: socket.socket | None = None
        if with_control:
            self.control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.insert(1, their_control.fileno())
        for fd in (write, read):
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)  # larger pieces; refused where users share a limit
        for fd in (write, log_read, status_read):
            os.set_blocking(fd, False)
        try:
            socket.send_fds(control, [json.dumps(request).encode()], theirs)
        except BaseException:
            self._close_fds()
            raise
        finally:
            if their_control is not None:
                their_control.close()
            for fd in (status_write, their_read, their_write, their_log):
                os.close(fd)
        self._answers = select.poll()
        for name in ("status", "read", "log"):
            self._answers.register(self._fds[name], select.POLLIN)
        self._news = bytearray()
        self._held = False

    def send(self, body: Mapping[str, Any], tensors: list[torch.Tensor], *, deadline: float) -> None:
        """Send a message; DeadlineError or EndedError where the child does not take it."""
        if tensors and self._room is None:
            self._room = Room.over(self._fds["room"])
        shelf = None if self._room is None else self._room.question
        poller: select.poll | None = None

        def wait() -> None:
            nonlocal poller
            if poller is None:
                poller = select.poll()
                poller.register(self._fds["write"], select.POLLOUT)
                poller.register(self._fds["log"], select.POLLIN)
                poller.register(self._fds["status"], select.POLLIN)
            self._poll(poller, self._fds["write"], deadline)

        if shelf is not None:
            shelf.clear()
        try:
            wire.send(self._fds["write"], body, tensors, shelf=shelf, wait=wait)
        except BrokenPipeError:
            self._end_of_pipe()

    def receive(self, *, deadline: float) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """Wait for a message; DeadlineError or EndedError where none comes, wire.WireError where it is none."""

        def wait() -> None:
            self._poll(self._answers, self._fds["read"], deadline)

        shelf = None if self._room is None else self._room.answer
        try:
            return wire.receive(self._fds["read"], shelf=shelf, wait=wait)
        except wire.EndOfStreamError:
            self._end_of_pipe()

    def _poll(self, poller: select.poll, wanted: int, deadline: float) -> None:
        """Return when `wanted` is ready; keep the log empty meanwhile."""
        while True:
            left = deadline - time.monotonic()
            ready = dict(poller.poll(max(left, 0.0) * 1000))
            if self._fds["log"] in ready and not self._drain():
                poller.unregister(self._fds["log"])
            if wanted in ready:
                return
            if self._fds["status"] in ready:
                self._read_status()
                if self._ended:
                    raise EndedError(self._status)
            if left <= 0 and not ready:
                raise DeadlineError
            if left <= 0 and time.monotonic() > deadline + _PATIENCE:
                raise DeadlineError  # a log without end is no answer

    def _end_of_pipe(self) -> NoReturn:
        """The pipe ended: wait a moment for the process to end too, then end it."""
        alone = self._wait_for_end(_PATIENCE)
        self._drain()
        if not alone:
            self.kill()
            raise wire.WireError("its pipe was closed while the process went on")
        raise EndedError(self._status)

    def _wait_for_end(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        poller = select.poll()
        poller.register(self._fds["status"], select.POLLIN)
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            if poller.poll(left * 1000):
                self._read_status()
        return self._ended

    def _read_status(self) -> None:
        try:
            news = os.read(self._fds["status"], 4096)
        except BlockingIOError:
            return
        if not news:
            self._ended = True  # the server is gone, and this child with it
            return
        self._news += news
        *lines, self._news = self._news.split(b"\n")
        for line in lines:
            content = json.loads(line)
            self.pid = content.get("pid", self.pid)
            if "status" in content:
                self._status, self._ended = content["status"], True

    def _drain(self) -> bool:
        """Read what the log holds; False once it is closed."""
        for _ in range(64):
            try:
                piece = os.read(self._fds["log"], 1 << 16)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.log = (self.log + piece)[-_LOG_BYTES:]
        return True

    def take_log(self) -> str:
        """Return the tail of the log so far, and forget it."""
        self._drain()
        text, self.log = self.log.decode(errors="replace"), bytearray()
        return text

    def kill(self) -> None:
        """End the process and everything in its group, and wait for it."""
        self._read_status()
        if not self._ended and not self.pid:
            self._wait_for_pid()
        if not self._ended and self.pid:
            for ending in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    ending(self.pid, signal.SIGKILL)
            # A driver may hold a process whose GPU kernel does not end: it is waited for once.
            if not self._held:
                self._held = not self._wait_for_end(10 * _PATIENCE)

    def _wait_for_pid(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self.pid and not self._ended and time.monotonic() < deadline:
            select.select([self._fds["status"]], [], [], _PATIENCE)
            self._read_status()

    def close(self) -> None:
        """End the process and release its pipes; idempotent."""
        if self._fds:
            self.kill()
            self._close_fds()

    def _close_fds(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds, self._room = {}, None
        if self.control is not None:
            self.control.close()
