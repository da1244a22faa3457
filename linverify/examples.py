"""Examples that failed, kept for all workers of a session: Hypothesis's example database behind a function call.

A worker that makes a failing case smaller first tries what others have found for cases drawn alike, so a fault that breaks many
laws is made small once.
"""

from collections.abc import Callable, Iterable

from hypothesis.database import ExampleDatabase


class Examples:
    """The database itself, wherever it lives: choice sequences by key."""

    def __init__(self) -> None:
        self._held: dict[bytes, set[bytes]] = {}

    def fetch(self, key: bytes) -> list[bytes]:
        """Return what is held under a key."""
        return sorted(self._held.get(key, ()))

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        self._held.setdefault(key, set()).add(value)

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a value."""
        self._held.get(key, set()).discard(value)


class SharedExamples(ExampleDatabase):
    """Hypothesis's view of examples that live elsewhere; `within` sets the stratum whose examples are meant."""

    def __init__(self, call: Callable[..., object], prefix: bytes = b"") -> None:
        """Reach the examples through a function.

        Args:
            call: takes the name of a method of `Examples` and its arguments, and returns what it returns.
            prefix: of every key.
        """
        super().__init__()
        self._call, self._prefix = call, prefix

    def within(self, label: str) -> "SharedExamples":
        """Return the same examples, those of one stratum."""
        return SharedExamples(self._call, f"{label}/".encode())

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Return what is held under a key."""
        found = self._call("fetch", self._prefix + key)
        return found if isinstance(found, list) else []

    def save(self, key: bytes, value: bytes) -> None:
        """Keep a value."""
        self._call("save", self._prefix + key, value)

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a value."""
        self._call("delete", self._prefix + key, value)
