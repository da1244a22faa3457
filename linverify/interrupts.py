"""Ctrl-C, and the polite request to end that CI systems send: where they may strike.

WHY. A run that is interrupted must still say what it judged. Python's own handler raises wherever the program happens to be,
in the middle of writing the record too. Here the request is remembered, and raised only where somebody waits for it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SOON = 0.01  # seconds


class _State:
    listening = False
    raising = True
    pending = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_name == "gc_callback":
        # Hypothesis times the garbage collector, and what is raised in a collector's callback is lost: ask again, soon.
        threading.Timer(_SOON, os.kill, (os.getpid(), number)).start()
        return
    raising, _State.raising = _State.raising, False  # once: who asks again gets no faster end, and no broken one
    _State.pending = True
    if raising:
        raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[None]:
    """Within the block both signals raise KeyboardInterrupt, the first time and where they are not held back."""
    if _State.listening:
        yield
        return
    try:
        # A shell starts background jobs with Ctrl-C ignored; that stays.
        before = {n: signal.signal(n, _interrupt) for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    except ValueError:  # only the main thread may set handlers
        yield
        return
    _State.listening, _State.raising, _State.pending = True, True, False
    try:
        yield
    finally:
        _State.listening, _State.raising, _State.pending = False, True, False
        for number, handler in before.items():
            signal.signal(number, handler)


def no_more() -> None:
    """Ignore both signals from here on: the process is ending, and is not to break off at it."""
    for number in _SIGNALS:
        with suppress(ValueError):  # only the main thread may set handlers
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Within the block nothing is raised, except inside `armed`; the request is remembered."""
    before, _State.raising = _State.raising, False
    try:
        yield
    finally:
        _State.raising = before and not _State.pending


@contextmanager
def armed() -> Iterator[None]:
    """Within the block a request is raised, one that came before it included.

    Raises:
        KeyboardInterrupt: somebody asked to end.
    """
    if _State.pending:
        raise KeyboardInterrupt
    before, _State.raising = _State.raising, True
    try:
        yield
    finally:
        _State.raising = before
