"""The tour: what linverify does, shown on a kernel that is right and then on the same kernel with one line wrong; no GPU.

It runs the commands that it shows, in a folder of its own, so that every line of it can be repeated afterwards.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

FILE = "gla.py"
RIGHT = "state = decay[:, t, :, :, None] * state"
WRONG = "state = decay[:, t - 1, :, :, None] * state"
CHECK = (
    *("check", FILE, "--device", "cpu", "--profile", "quick", "--dtype", "fp32"),
    *("--property", "agreement", "--property", "gradients"),
)
NEXT = """\
That is a report: which results are wrong and which are right, the smallest case that shows it, what was allowed there, and
what the wrong results are instead. Nobody chose a tolerance.

    linverify check my_kernel.py::my_function --op gla      any function, by its file
    linverify check my_kernel.py::my_function --op gla --html report.html
    linverify list                                          operators, built-in implementations, properties, regimes
    linverify explain gla                                   what an operator computes and which laws it obeys
    linverify doctor                                        what can be checked on this machine
"""


def tour(command: Callable[[Sequence[str]], int]) -> int:
    """Show it; return 0 where both kernels got the verdict that they deserve, else 1.

    Args:
        command: runs a command line, as ``linverify.cli.main``.
    """
    folder = Path(tempfile.mkdtemp(prefix="linverify-tour-"))

    def show(*words: str) -> int:
        _say(f"$ linverify {' '.join(words)}\n")
        code = command(words)
        _say()
        return code

    with contextlib.chdir(folder):
        _say(f"A tour of linverify, in {folder}; it takes a minute or so.\n")
        _say("1. A kernel to begin with: gated linear attention, token by token, in PyTorch.\n")
        if show("init", "gla", FILE):
            return 1
        _say("2. Is it right? Two of the laws, in float32; without --property, all of them.\n")
        right = show(*CHECK)
        if right == 130:
            return right
        text = Path(FILE).read_text(encoding="utf-8")
        _say(
            f"3. Now with a mistake in one line, the gate of the token before:\n\n-        {RIGHT}\n+        {WRONG}\n"
        )
        Path(FILE).write_text(text.replace(RIGHT, WRONG), encoding="utf-8")
        wrong = show(*CHECK)
        if wrong == 130:
            return wrong
    _say(NEXT)
    return 0 if (right, wrong, text.count(RIGHT)) == (0, 1, 1) else 1


def _say(text: str = "") -> None:
    sys.stdout.write(text + os.linesep)
    sys.stdout.flush()
