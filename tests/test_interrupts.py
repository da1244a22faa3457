"""A request to end reaches whoever waits for it, wherever it struck."""

import gc
import os
import signal
import time
from collections.abc import Callable

import pytest

from linverify import interrupts


def _strike() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # the handler runs between two instructions of Python


class _Dying:
    def __del__(self) -> None:
        _strike()


def _in_a_destructor() -> None:
    del [_Dying()][0]


def _in_a_collectors_callback() -> None:
    def callback(phase: str, _: dict) -> None:
        if phase == "start":
            _strike()

    gc.callbacks.append(callback)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(callback)


@pytest.mark.parametrize("strike", [_strike, _in_a_destructor, _in_a_collectors_callback])
def test_an_interrupt_is_heard(strike: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    def waits() -> None:
        strike()
        time.sleep(5)

    with interrupts.listening(), pytest.raises(KeyboardInterrupt):
        waits()
    assert "Traceback" not in capsys.readouterr().err


def test_one_that_is_held_back_is_raised_where_somebody_waits() -> None:
    with interrupts.listening():
        with interrupts.held():
            _strike()
        with pytest.raises(KeyboardInterrupt), interrupts.armed():
            pass
