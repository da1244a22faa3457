"""Tasks shared out among processes that stay, results as they come: for benchmarks that would take one process an hour.

A process goes on with tasks of the group that it has begun, whose references it remembers. Each has a part of the cores to
itself, one where there are enough: a session's own processes take turns. A task that ends its process is told to have failed;
when the time is over the processes are ended, whatever they do.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from linverify.forkserver import die_with_parent

Row = dict[str, Any]
T = TypeVar("T")
# Returns how a process works; called in it, once.
Begin = Callable[[], Callable[[T], Row]]

_FORK = multiprocessing.get_context("fork")  # what is imported is imported once
_PATIENCE = 5.0  # seconds for a process to end


def shared_out(
    tasks: Sequence[T], group: Callable[[T], object], begin: Begin[T], *, jobs: int, seconds: float
) -> Iterator[tuple[T, Row]]:
    """Yield each task that was done in time with its row; {"error": text} where it raised or ended its process.

    Args:
        tasks: what matters most first.
        group: tasks of one group share what one process remembers.
        begin: returns how a process works.
        jobs: number of processes.
        seconds: for all together.
    """
    left, until = list(tasks), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        workers = [_Worker(n, jobs, begin, folder) for n in range(min(jobs, len(left)))]
        try:
            for worker in workers:
                worker.go_on(left, group)
            while busy := {w.connection: w for w in workers if w.tasks}:
                ready = wait(
                    list(busy), timeout=None if seconds == float("inf") else max(0.0, until - time.monotonic())
                )
                if not ready:
                    return
                for connection in ready:
                    worker = busy[connection]  # type: ignore[index]  # wait returns what it was given
                    row = worker.receive()
                    yield worker.tasks.pop(), row
                    worker.go_on(left, group)
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A process, seen from outside."""

    def __init__(self, number: int, jobs: int, begin: Begin[Any], folder: str) -> None:
        self._started_with = (number, jobs, begin, folder)
        self.tasks: list[Any] = []
        self._group: object = None
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _FORK.Pipe()
        self._process: BaseProcess = _FORK.Process(target=_serve, args=(theirs, os.getpid(), *self._started_with))
        self._process.start()
        theirs.close()

    def go_on(self, left: list[Any], group: Callable[[Any], object]) -> None:
        """Give it the next task of its group, else the first of all; none where none is left."""
        if left:
            place = next((n for n, task in enumerate(left) if group(task) == self._group), 0)
            task = left.pop(place)
            self.tasks, self._group = [task], group(task)
            self.connection.send(task)

    def receive(self) -> Row:
        """Return its row; where it has ended, say so and start another."""
        try:
            row: Row = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.end()
            status = self._process.exitcode
            self._start()
            return {"error": f"its process ended with {status}"}
        return row

    def end(self) -> None:
        """End the process; what it started ends with it."""
        self._process.terminate()
        self._process.join(_PATIENCE)
        self.connection.close()


def _serve(
    connection: "Connection[Any, Any]", parent: int, number: int, jobs: int, begin: Begin[Any], folder: str
) -> None:
    """In the process: answer until it is ended."""
    die_with_parent(parent)
    tempfile.tempdir = folder
    if jobs > 1:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: jobs])
    torch.set_num_threads(1)
    work = begin()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            row = work(task)
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {error}"}
        connection.send(row)
