"""Ctrl-C, and the polite request to end that CI systems send: where they may strike.

WHY. A run that is interrupted must still say what it judged. Python's own handler raises wherever the program happens to be,
in the middle of writing the record too. Here the request is remembered, and raised only where somebody waits for it.
"""

import os
import signal
import sys
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


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raising, _State.raising = _State.raising, False  # once: who asks again gets no faster end, and no broken one
    _State.pending = True
    if raising:
        raise KeyboardInterrupt


def _lost(report: "sys.UnraisableHookArgs") -> bool:
    """What is raised in a destructor or a collector's callback (Hypothesis has one) reaches nobody: ask again, soon."""
    if not issubclass(report.exc_type, KeyboardInterrupt) or not _State.listening:
        return False
    _State.raising, _State.pending = True, False
    threading.Timer(_SOON, _again).start()
    return True


def _again() -> None:
    if _State.listening and not _State.pending:  # the impatient ask twice, and the first may have been heard meanwhile
        os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def _heard() -> Iterator[None]:
    before = sys.unraisablehook
    sys.unraisablehook = lambda report: None if _lost(report) else before(report)
    try:
        yield
    finally:
        sys.unraisablehook = before


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
        with _heard():
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
