"""Targets: the text by which a user names what is to be checked.

``kernels.py``, ``kernels.py::function`` (``kernels.py:function`` too) or ``package.module:function``. Nothing is
imported here: user code runs in a worker only. A syntax error is found by compiling the text, without running it.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from linverify.errors import UsageError

_FORMS = "expected file.py, file.py::function or package.module:function"
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """What a target text says.

    Attributes:
        text: as the user wrote it.
        kind: whether `location` is a file or a module.
        location: absolute path of the file, or the module's dotted name.
        function: name within it (attributes by dots), or None for all decorated functions.
    """

    text: str
    kind: Literal["file", "module"]
    location: str
    function: str | None = None

    @property
    def label(self) -> str:
        """The location as people write it, without the function."""
        return Path(self.location).name if self.kind == "file" else self.location

    @property
    def mentions_triton(self) -> bool:
        """Whether the worker does well to load Triton beforehand."""
        return self.kind == "module" or b"triton" in Path(self.location).read_bytes()


def parse(text: str) -> TargetSpec:
    """Read a target text.

    Raises:
        UsageError: the file is missing, is no Python file or has a syntax error; the text is no target at all.
    """
    text = text.strip()
    if not text:
        raise UsageError(f"{text!r} is no target; {_FORMS}")
    place, function = _split(text)
    if function is not None and not _MODULE.fullmatch(function):
        raise UsageError(f"{text!r}: expected a function name after the colon, got {function!r}")
    if place.endswith(".py") or "/" in place or "\\" in place or Path(place).exists():
        return TargetSpec(text, "file", _checked(place), function)
    if not _MODULE.fullmatch(place):
        raise UsageError(f"{text!r} is no target; {_FORMS}")
    return TargetSpec(text, "module", place, function)


def from_here(file: str) -> str:
    """Return a path relative to the current folder where it lies in it: records are read on other machines too."""
    here = Path.cwd()
    return Path(file).relative_to(here).as_posix() if file and Path(file).is_relative_to(here) else file


def _split(text: str) -> tuple[str, str | None]:
    for separator in ("::", ":"):
        place, found, function = text.rpartition(separator)
        # The colon of a Windows drive is followed by a path, never by a name alone.
        if found and "/" not in function and "\\" not in function and not function.endswith(".py"):
            return place, function
    return text, None


def _checked(place: str) -> str:
    path = Path(place).expanduser()
    if path.is_dir():
        raise UsageError(f"{place} is a folder; name a Python file in it")
    if not path.is_file():
        raise UsageError(f"no such file: {place}")
    if path.suffix != ".py":
        raise UsageError(f"{place} is no Python file; expected a name that ends in .py")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {place}: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a doubtful escape in the user's file is not our business
            compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UsageError(f"{place}, line {error.lineno}: syntax error: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{place} is no Python source: {error}") from None
    return str(path.resolve())
