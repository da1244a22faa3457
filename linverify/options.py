"""What stands behind the options of the command line: text in, values out, and a usage error for a wrong word."""

import ast
import math
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from linverify import dtype as formats
from linverify.errors import CannotCheckError, UsageError, unknown

DEFAULT_DTYPES = ("fp32", "bf16", "fp16")
AUTOTUNE = ("pin", "all", "native")
ENGINES = ("local", "ray")
_NAME = re.compile(r"[A-Za-z_]\w*")


def literal(text: str) -> Any:
    """Return the Python literal that `text` spells, else the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text


def operator_option(text: str | None) -> tuple[str | None, dict[str, str]]:
    """Read ``OP`` or ``OP:key=value,key=value``.

    Raises:
        UsageError: an operator parameter is not key=value.
    """
    if text is None:
        return None, {}
    name, _, parameters = text.partition(":")
    items = [item for item in parameters.split(",") if item]
    if not name.strip() or (":" in text and not items):
        raise UsageError(f"--op {text!r}: expected OP or OP:key=value, for example --op gla")
    pairs = _pairs(items, "--op OP:", literal_values=False)
    return name.strip(), {key: str(value) for key, value in pairs.items()}


def settings_option(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``NAME=VALUE``, repeated; values are Python literals, else strings.

    Raises:
        UsageError: one is not NAME=VALUE, or a name comes twice.
    """
    return _pairs(texts, "--set ")


def claims_option(texts: Sequence[str]) -> dict[str, str]:
    """Read ``KEY=VALUE``, repeated; a key alone means true, and all values stay text.

    Raises:
        UsageError: a key is no name, or comes twice.
    """
    pairs = _pairs([t if "=" in t else f"{t}=true" for t in texts], "--claims ", literal_values=False)
    return {key: str(value) for key, value in pairs.items()}


def with_recipe(claims: Sequence[str] | None, recipe: str | None) -> list[str]:
    """Return the claims, a recipe among them; one that cannot be read is found out at once.

    Raises:
        UsageError: the recipe is not understood, or comes twice.
    """
    from linverify.declared import declared

    given = [*(claims or ()), *(() if recipe is None else (f"recipe={recipe}",))]
    declared(claims_option(given).get("recipe"))
    return given


def _pairs(texts: Iterable[str], option: str, *, literal_values: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"{option}{text!r}: expected NAME=VALUE, for example {option}chunk_size=32")
        if name in found:
            raise UsageError(f"{option}{text!r}: {name} is given twice")
        found[name] = literal(value) if literal_values else value.strip()
    return found


def device_option(text: str | None) -> str:
    """Return the device to use: what is asked for, else cuda:0 where there is one, else cpu.

    Raises:
        UsageError: it is no device text.
        CannotCheckError: there is no such device.
    """
    import torch

    if text is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if text == "cpu":
        return text
    match = re.fullmatch(r"cuda(?::(\d+))?", text)
    if match is None:
        raise UsageError(f"--device {text!r}: expected cpu, cuda or cuda:0, cuda:1 ...")
    index = int(match[1] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        here = (
            f"this machine has {count} CUDA device{'s' * (count != 1)}" if count else "this machine has no CUDA device"
        )
        raise CannotCheckError(f"no such device: cuda:{index}; {here}; 'linverify doctor' shows what there is")
    return f"cuda:{index}"


def dtypes_option(texts: Sequence[str]) -> tuple[str, ...]:
    """Return short format names in the order given, each once; the default list where none is given.

    Raises:
        UsageError: a name is no format.
    """
    return tuple(dict.fromkeys(formats.parse(t).name for t in texts)) or DEFAULT_DTYPES


def one_of(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known; dashes and blanks stand for underscores.

    Raises:
        UsageError: it is not; the nearest right word is named.
    """
    known = list(known)
    spelled = re.sub(r"[-\s]+", "_", name.strip())
    if spelled not in known:
        raise unknown(kind, name, known)
    return spelled


def time_option(seconds: float | None) -> float | None:
    """Return a time limit in seconds.

    Raises:
        UsageError: it is not positive.
    """
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise UsageError(f"--time {seconds:g}: expected a positive number of seconds")
    return seconds


def workers_option(number: int) -> int:
    """Check the number of processes.

    Raises:
        UsageError: there must be one at least.
    """
    if number < 1:
        raise UsageError(f"-n: expected 1 or more processes, got {number}")
    return number


def file_option(option: str, path: Path | None) -> Path | None:
    """Return the path of a file that an option asks for, if it can be written when the run is over.

    Raises:
        UsageError: the folder is missing, or the path names one.
    """
    if path is None:
        return None
    if path.is_dir():
        raise UsageError(f"{option} {path}: expected a file, this is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no such folder: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: the folder {path.parent} cannot be written")
    return path


def recorded_replay(script: Path) -> list[str]:
    """Return the arguments of the replay command that a reproducer script carries at its top.

    Raises:
        UsageError: there is no such file, or it is no reproducer.
    """
    try:
        lines = script.read_text(encoding="utf-8").splitlines()[:20]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {script}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    for line in lines:
        words = line.removeprefix("#").split(maxsplit=1)
        if words[:1] == ["replay"] and line.startswith("#"):
            return shlex.split(words[1])[1:]
    raise UsageError(f"{script} is no reproducer of linverify: its first lines hold no replay command")
