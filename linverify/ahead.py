"""Ahead: the processes of a check start before torch is imported here, so that all of them import it at the same time.

Nothing that this file imports imports torch. What nobody takes is killed when this process ends.
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from linverify.errors import UsageError
from linverify.target import parse

_HOME = str(Path(__file__).resolve().parents[1])
_WORKERS = ("-n", "--workers")


@dataclass(frozen=True, slots=True)
class Started:
    """A process of ours, which may still be importing.

    Attributes:
        process: the process.
        channel: our end of its socket.
        errors: what it writes.
    """

    process: subprocess.Popen[bytes]
    channel: socket.socket
    errors: IO[bytes]

    def kill(self) -> None:
        """End it at once; idempotent."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.errors.close()


_servers: dict[str, Started] = {}
_examiners: list[Started] = []


def environment(device: str, extra: Mapping[str, str] | None, *, preload_triton: bool) -> dict[str, str]:
    """The environment of a worker: what must be set before torch or Triton is imported."""
    found = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTEST_CURRENT_TEST")}
    # One thread at import keeps a process forkable; the runner sets the number that was asked for.
    found.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    found["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not open it
    if device == "cpu":
        found["TRITON_INTERPRET"] = "1"
        found["CUDA_VISIBLE_DEVICES"] = ""  # a check on the CPU means the same where there is a GPU
    if preload_triton:
        found["LINVERIFY_PRELOAD"] = "triton"
    found.update(extra or {})
    return ours_first(found)


def ours_first(given: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a process imports this linverify."""
    others = [p for p in given.get("PYTHONPATH", "").split(os.pathsep) if p not in ("", _HOME)]
    return {**given, "PYTHONPATH": os.pathsep.join([_HOME, *others])}


def name_of(environment: Mapping[str, str]) -> str:
    """Return the name of a fork server: processes that agree on the environment may share it."""
    return hashlib.sha256(json.dumps(sorted(environment.items())).encode()).hexdigest()


def server(environment: Mapping[str, str]) -> Started:
    """Return the fork server that was started for an environment, or start it; it waits to be taken."""
    name = name_of(environment)
    if name not in _servers:
        _servers[name] = _start("linverify.worker", environment, socket.SOCK_SEQPACKET)
    return _servers[name]


def taken(environment: Mapping[str, str]) -> Started:
    """Return that fork server; it is the caller's from now on."""
    found = server(environment)
    del _servers[name_of(environment)]
    return found


def examiner(control: socket.socket, name: str) -> Started:
    """Return an examiner, started before where that was foreseen.

    Args:
        control: socket of the fork server that it shares.
        name: of that server.
    """
    if _examiners:
        return _examiners.pop()
    return _start("linverify.examiner", ours_first(os.environ), socket.SOCK_STREAM, control.fileno(), name)


def foresee(words: Sequence[str]) -> None:
    """Start what a command line will need, as far as it says so plainly; a wrong guess costs time, no truth."""
    if words[:1] != ["check"] or len(words) < 2 or "--engine" in words:
        return
    device = _after(words, ("--device",)) or ("cuda" if _has_gpu() else "cpu")
    count = _after(words, _WORKERS)
    try:
        triton = parse(words[1]).mentions_triton
    except (UsageError, OSError):
        return
    wanted = environment(device, None, preload_triton=triton)
    control = server(wanted).channel
    if count.isdecimal() and int(count) > 1:
        _examiners.extend([examiner(control, name_of(wanted)) for _ in range(min(int(count), os.cpu_count() or 1))])


def _after(words: Sequence[str], options: Sequence[str]) -> str:
    """The value of an option, written apart; "" where there is none."""
    return next((value for word, value in itertools.pairwise(words) if word in options), "")


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1")


def _start(module: str, environment: Mapping[str, str], kind: int, *words: object) -> Started:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process that writes it
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), *map(str, words)],
            env=dict(environment),
            pass_fds=[theirs.fileno(), *(w for w in words if isinstance(w, int))],
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the session to hear
        )
    return Started(process, ours, errors)


@atexit.register
def _kill() -> None:
    with contextlib.suppress(OSError):
        for left in (*_servers.values(), *_examiners):
            left.kill()
