"""A fork server: a process that has done the expensive imports and forks a child for every request.

WHY. Importing torch costs a second, importing a kernel library ten; after a crash neither should be paid again. The
server is single-threaded, has run no kernel and has not touched a GPU, so a fork of it is a fresh process. Requests
come as datagrams with file descriptors attached; of each child the server reports, on a pipe of that child's own, the
process id and later the exit status.

The server ends when its control socket is closed; its children are killed by the kernel when it ends. What a child leaves
running, in its process group or out of it, is adopted by the server and ended with the child.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

# How a child ends that cannot go on through no word of the target: its pipes are gone, say.
OWN_EXIT = 70
OWN_ERROR = "linverify worker: "
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER
_ORPHAN_SECONDS = 5.0
_PROCESSES = 4096  # that the targets of one server may have at once, beyond those that its user has already
_MESSAGE_BYTES = 1 << 17
_SHARE_OF_FREE_MEMORY = 0.5
_LIMIT_VARIABLE = "LINVERIFY_WORKER_BYTES"

Start = Callable[[dict[str, Any], list[int]], None]


def serve(control: socket.socket, start: Start, errand: Callable[[], object] | None = None) -> NoReturn:
    """Fork a child for each request until the control socket is closed; then exit.

    A request is one datagram: a JSON object and the descriptors for the child; the first of them is the child's status
    pipe and stays with the server. In the child `start(request, other descriptors)` runs and the child exits with 0. A request
    without descriptors sends the server itself on its errand.

    Args:
        control: where requests come.
        start: what a child does.
        errand: what the server may be asked to do for the children to come.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    poller = select.poll()
    for fd in (control.fileno(), wake_read):
        poller.register(fd, select.POLLIN)
    children: dict[int, int] = {}
    helpers = frozenset(_own_children())  # what an import started and may still need
    while True:
        for fd, _ in poller.poll():
            if fd == wake_read:
                os.read(wake_read, 4096)
                _report_ended(children, helpers)
                continue
            message, fds, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 16)
            if not message:
                os._exit(0)
            if not fds and errand is not None:
                with contextlib.suppress(Exception):  # a child can do it for itself
                    errand()
                continue
            status, *rest = fds
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for unused in (wake_read, wake_write, status, *children.values()):
                    os.close(unused)
                control.close()
                _become_child(parent)
                _run_to_the_end(start, json.loads(message), rest)
            children[pid] = status
            for given in rest:
                os.close(given)
            _tell(status, {"pid": pid})


def _run_to_the_end(start: Start, request: dict[str, Any], fds: list[int]) -> NoReturn:
    # No handler of the copied interpreter may run in the copy: the child leaves through os._exit whatever happens.
    try:
        start(request, fds)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{OWN_ERROR}{type(error).__name__}: {error}\n".encode())
        os._exit(OWN_EXIT)
    os._exit(0)


def _become_child(parent: int) -> None:
    os.setsid()  # a group of its own, so that the parent can kill it with everything it started
    die_with_parent(parent)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; `parent` is the parent's process id."""
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it ended before the request reached the kernel


def _report_ended(children: dict[int, int], helpers: frozenset[int]) -> None:
    ended = dict(_reaped())
    if not ended.keys() & children.keys():
        return
    _end_orphans({*children, *helpers}, ended)
    for pid in ended.keys() & children.keys():
        status_fd = children.pop(pid)
        _tell(status_fd, {"status": ended[pid]})
        os.close(status_fd)


def _reaped() -> Iterator[tuple[int, int]]:
    """Process id and wait status of everything that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _end_orphans(known: Collection[int], ended: dict[int, int]) -> None:
    """Kill what the ended children left running; their own children come to us as soon as they are gone."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while time.monotonic() < deadline:
        orphans = [pid for pid in _own_children() if pid not in known]
        if not orphans:
            return
        for pid in orphans:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        ended.update(_reaped())


def _own_children() -> Iterator[int]:
    """Process ids of the living whose parent is this process."""
    me = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if parent == me and state not in "ZX":
            yield int(stat.parent.name)


def _tell(fd: int, content: dict[str, int]) -> None:
    try:
        os.write(fd, json.dumps(content).encode() + b"\n")
    except BrokenPipeError:
        return  # nobody waits for this child any more


def forkable() -> bool:
    """Tell whether a fork of this process is a fresh process: one thread, and no GPU opened."""
    if len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208  # a count of names; nothing is opened
        return False
    for fd in Path("/proc/self/fd").iterdir():
        try:
            name = str(fd.readlink())
        except OSError:
            continue  # the descriptor of this very listing
        if name.startswith("/dev/nvidia") and not name.startswith("/dev/nvidiactl"):
            return False
    return True


def cap_processes() -> None:
    """Limit the number of processes and threads; the system does not hold the superuser to it."""
    mine, uid = 0, os.getuid()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        mine += int(facts["Threads"]) if facts.get("Uid", "").split()[:1] == [str(uid)] else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    wanted = mine + _PROCESSES
    known = [limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_NPROC, (min(known), hard))


def cap_memory() -> None:
    """Limit this process's memory, so that a runaway allocation fails in it alone.

    It may take half of what is free now, or as many bytes as the environment variable LINVERIFY_WORKER_BYTES says.
    """
    allowed = int(os.environ.get(_LIMIT_VARIABLE) or _free_memory() * _SHARE_OF_FREE_MEMORY)
    used = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            used = int(line.split()[1]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + allowed
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _free_memory() -> int:
    free = next(
        int(x.split()[1]) for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable:")
    )
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free * 1024, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return free * 1024  # no such group, or "max": no limit
    return max(free, 0)
