"""A crew of processes that make one attempt after the other: what takes long, importing a library, happens once in each.

An attempt is a function of a module of benchmarks, called with what JSON holds; it returns a Finding, or yields what it knows
so far again and again, the last one being the whole. A process that is lost (an illegal memory access, a hang) costs the
attempt that it was at, and another one takes its place.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

HERE = Path(__file__).resolve().parent
MARK = "finding:"
SO_FAR = "so far:"
LOST = ("illegal memory access", "misaligned address", "CUDA error", "unspecified launch failure")

# What an attempt says of itself; a crew adds "process lost", "no answer" and "not begun".
Status = Literal["reproduced", "not reproduced", "pass", "violation", "refused", "printed"]


@dataclass(frozen=True)
class Finding:
    """What an attempt found: its status, and the numbers that it rests on."""

    status: Status
    numbers: str

    @classmethod
    def of(cls, seen: object, numbers: str) -> "Finding":
        """Reproduced where `seen` is true."""
        return cls("reproduced" if seen else "not reproduced", numbers)


@dataclass(frozen=True)
class Attempt:
    """What is tried.

    Attributes:
        name: of the thread or function it is about.
        what: it is, in words.
        function: in `module`.
        arguments: for it.
        settings: keyword arguments for it.
        module: of benchmarks.
        alone: whether it changes its process for those after it.
    """

    name: str
    what: str
    function: str
    arguments: tuple[Any, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    module: str = "fla_attempts"
    alone: bool = False


class _Hand:
    """One process of the crew."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            start_new_session=True,  # compilers that it started end with it
        )
        self.so_far: str | None = None
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in cast("Iterable[str]", self.process.stdout):
            if line.startswith(SO_FAR):
                self.so_far = line.removeprefix(SO_FAR)
            elif line.startswith(MARK):
                self.lines.put(line.removeprefix(MARK))
        self.lines.put(None)

    def make(self, attempt: Attempt, limit: float) -> dict[str, str]:
        """Make one attempt; the process is gone where it was lost or took too long."""
        asked = [attempt.module, attempt.function, attempt.arguments, dict(attempt.settings)]
        self.so_far = None
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            answer = self.lines.get(timeout=limit)
        except queue.Empty:
            self.end()
            return cut_off(self.so_far, f"in {limit:.0f} s")
        except BrokenPipeError:
            answer = None
        if answer is None:
            self.process.wait()
            self.errors.seek(0)
            return lost(self.process.returncode, self.errors.read(), self.so_far)
        return dict(json.loads(answer))

    def end(self) -> None:
        """Stop the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.errors.close()


def lost(code: int, errors: str, so_far: str | None = None) -> dict[str, str]:
    """What a process that ended by itself leaves: lost where the GPU's context went or a signal ended it, else a refusal."""
    words = [w.strip() for w in errors.splitlines() if w.strip()]
    last = next((w for w in words if any(x in w for x in LOST)), words[-1] if words else f"exit {code}")[:200]
    before = f"; before that: {json.loads(so_far)['numbers']}" if so_far else ""
    if code < 0 or any(w in errors for w in LOST):
        return {"status": "process lost", "numbers": last + before}
    return {"status": "refused", "numbers": last + before}


def cut_off(so_far: str | None, when: str) -> dict[str, str]:
    """What an attempt that took too long leaves: a violation stays one, a pass was none yet."""
    if so_far is None:
        return {"status": "no answer", "numbers": when}
    known = json.loads(so_far)
    status = "violation" if known["status"] == "violation" else "no answer"
    return {"status": status, "numbers": f"cut off {when}; until then: {known['numbers']}"}


def run(
    attempts: Iterable[Attempt],
    keep: Callable[[dict[str, Any]], None],
    *,
    together: int,
    limit: float,
    stop: float = float("inf"),
    cache: str = "",
) -> None:
    """Make all attempts in their order, `keep` a line each as they end.

    Args:
        attempts: most informative first.
        keep: called by one thread at a time.
        together: processes at a time.
        limit: seconds for one attempt.
        stop: seconds after which none is begun and those at work are cut off.
        cache: folder of compiled kernels; "" for a new one, removed at the end.
    """
    todo: queue.SimpleQueue[Attempt] = queue.SimpleQueue()
    for attempt in attempts:
        todo.put(attempt)
    begin, writing = time.monotonic(), threading.Lock()
    with tempfile.TemporaryDirectory() as fresh:
        path = os.pathsep.join(p for p in (str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")) if p)
        folder = cache or fresh
        extensions = {"TORCH_EXTENSIONS_DIR": f"{folder}/extensions", "TRITON_CACHE_DIR": folder}
        environment = {**os.environ, **extensions, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

        def work() -> None:
            hand: _Hand | None = None
            while (left := stop - (time.monotonic() - begin)) > 0:
                try:
                    attempt = todo.get_nowait()
                except queue.Empty:
                    break
                hand = hand or _Hand(environment)
                start = time.monotonic()
                found = hand.make(attempt, min(limit, left))
                line = {
                    "name": attempt.name,
                    "what": attempt.what,
                    **found,
                    "seconds": round(time.monotonic() - start, 1),
                }
                with writing:
                    keep(line)
                if attempt.alone or hand.process.poll() is not None:
                    hand.end()
                    hand = None
            if hand is not None:
                hand.end()

        threads = [threading.Thread(target=work) for _ in range(together)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with writing:
            while not todo.empty():
                attempt = todo.get_nowait()
                keep({"name": attempt.name, "what": attempt.what, "status": "not begun", "numbers": "time was up"})


def shown(line: dict[str, Any]) -> str:
    """One line of text."""
    return f"{line['name']:>30}  {line['status']:14} {line['what']}: {line['numbers']}"


def _last(found: Finding | Iterator[Finding]) -> Finding:
    """The finding, or the last of those that are yielded; each is told."""
    if not isinstance(found, Iterator):  # its class is not this Finding, whose module runs as a script
        return found
    latest = None
    for latest in found:
        print(SO_FAR + json.dumps(asdict(latest)), flush=True)
    if latest is None:
        raise ValueError("expected an attempt that finds something; it yielded nothing")
    return latest


def main() -> None:
    """In a process of the crew: make the attempts that are asked for, one a line."""
    from linverify import autotune

    autotune.install("pin")  # before Triton is imported
    for line in sys.stdin:
        module, function, arguments, settings = json.loads(line)
        try:
            finding = _last(getattr(import_module(module), function)(*arguments, **settings))
        except Exception as error:
            if any(word in str(error) for word in LOST):
                raise  # the context is gone with it
            text = str(error).strip().splitlines()
            finding = Finding("refused", f"{type(error).__name__}: {text[0][:200] if text else ''}")
        print(MARK + json.dumps(asdict(finding)), flush=True)


if __name__ == "__main__":
    main()
