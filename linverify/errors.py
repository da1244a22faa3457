"""The errors a user can meet; each message says what was expected, what came, and what to do."""

import difflib
from collections.abc import Iterable, Sequence


class LinverifyError(Exception):
    """Base of every error that linverify raises on purpose."""

    exit_code = 2


class UsageError(LinverifyError):
    """The request cannot be understood: exit code 2."""


class ConfigError(UsageError):
    """The project's table [tool.linverify] is wrong; one line for each key."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


class CannotCheckError(LinverifyError):
    """The request is clear but could not be carried out (import fails, no such device): exit code 3."""

    exit_code = 3


class EmptyCaseSpace(LinverifyError):
    """No case can be drawn: the target offers nothing of what the property asks about."""

    exit_code = 3


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a wrong word, with the nearest right one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
