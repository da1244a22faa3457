"""What Triton's cache on disk already holds for a target, so that a second run does not compile, or wait for compilers, again.

The record lies inside Triton's own cache folder: whoever empties the cache empties the record. A stale record costs time, no
truth: what is missing is compiled when it is asked for.
"""

import hashlib
import os
import threading
from pathlib import Path

import torch

from linverify.bench import Signature


def _folder() -> Path:
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def unseen(target: str) -> bool:
    """Whether nothing was ever compiled for a target, whatever its version: no record lies there."""
    return not any(_folder().glob(f"linverify-{_text(target)}-*.txt"))


class Compiled:
    """Signatures that were compiled for one target with one version of everything; safe for several threads."""

    def __init__(self, target: str, file: str, how: str = "") -> None:
        """Read what is recorded.

        Args:
            target: as the user wrote it.
            file: that it is in.
            how: it is called.
        """
        content = Path(file).read_bytes() if file and Path(file).is_file() else b""
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        key = hashlib.sha256(f"{target}|{how}|{torch.__version__}|{name}".encode() + content).hexdigest()[:24]
        self._file = _folder() / f"linverify-{_text(target)}-{key}.txt"
        self._lock = threading.Lock()
        self._held = set(self._file.read_text().split()) if self._file.is_file() else set()

    @property
    def cold(self) -> bool:
        """Whether nothing was compiled before."""
        return not self._held

    def holds(self, signature: Signature) -> bool:
        """Whether the signature was compiled before."""
        return _text(signature) in self._held

    def add(self, signature: Signature) -> None:
        """Record a signature."""
        self._record(_text(signature))

    def done(self, drawn: str) -> bool:
        """Whether everything was compiled before for what decides the cases: nobody need draw them to find out."""
        return _text(drawn) in self._held

    def finish(self, drawn: str) -> None:
        """Record that everything is compiled."""
        self._record(_text(drawn))

    def _record(self, text: str) -> None:
        with self._lock:
            if text not in self._held:
                self._held.add(text)
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a") as file:
                    file.write(text + "\n")


def _text(thing: object) -> str:
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:16]
