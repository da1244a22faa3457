"""The user's project: the nearest pyproject.toml and its table ``[tool.linverify]``, as it is written."""

import tomllib
from pathlib import Path
from typing import Any

from linverify.errors import ConfigError

FILE = "pyproject.toml"


def nearest(folder: Path) -> Path | None:
    """Return the pyproject.toml of a folder or of the nearest one above it; None where there is none."""
    here = folder.resolve()
    return next((p for f in (here, *here.parents) if (p := f / FILE).is_file()), None)


def table(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the nearest pyproject.toml and its table; {} where it has none.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or holds something else under that name.
    """
    path = nearest(folder)
    if path is None:
        return None, {}
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path}: {getattr(error, 'strerror', None) or error}"]) from None
    tools = whole.get("tool", {})
    found = tools.get("linverify", {}) if isinstance(tools, dict) else {}
    if not isinstance(found, dict):
        raise ConfigError([f"{path}: expected a table [tool.linverify], got {found!r}"])
    return path, found
