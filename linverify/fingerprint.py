"""Which code is this: path, version and hash of the modules that parent and worker must share."""

import functools
import hashlib
from pathlib import Path

import linverify

_SHARED = (
    "amid",
    "arena",
    "autotune",
    "binding",
    "codec",
    "contract",
    "describe",
    "fence",
    "forkserver",
    "hygiene",
    "invoke",
    "layout",
    "meanings",
    "poison",
    "problem",
    "room",
    "suspicion",
    "transfer",
    "watch",
    "wire",
    "worker",
)


@functools.cache
def fingerprint() -> dict[str, str]:
    """Return path, version and hash of this process's linverify."""
    folder = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for name in _SHARED:
        digest.update((folder / f"{name}.py").read_bytes())
    return {"path": str(folder), "version": linverify.__version__, "hash": digest.hexdigest()}
