"""Where the function of a target is defined, as file and line; and a path as it is seen from a repository's root."""

import os
from pathlib import Path

from linverify.verdict import TargetResult


def place(result: TargetResult) -> tuple[str, int]:
    """Return the file and the line (from 1) of a target; "" and 0 where unknown.

    A target that could not be imported has no line; its file is in its text.
    """
    if result.file:
        return result.file, max(result.line, 1)
    text, _, _ = result.target.partition("::")
    text = text if text.endswith(".py") else text.rpartition(":")[0]
    return (Path(text).as_posix(), 1) if text.endswith(".py") else ("", 0)


def from_root(file: str) -> str | None:
    """Return a path relative to the root of the checkout, with forward slashes; None where it lies outside.

    The root is the workspace of a CI job where there is one, else the current folder.
    """
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    path = Path(file).resolve()
    return path.relative_to(root).as_posix() if file and path.is_relative_to(root) else None
