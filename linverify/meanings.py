"""Meanings: what names meant before the target was imported, and which of them it has given another meaning since.

WHY. It is asked after every call, when the processor's caches hold the kernel's numbers: to look up a thousand names then takes
as long as a small kernel. A dictionary of CPython 3.11 and 3.12 counts its own changes (PEP 509), so the names of one that has
not changed since it was last looked at need no look. Where a trial shows no such count, every name is looked at every time.
Python code that exchanges the code of a function raises an audit event; only what writes into memory as C does raises none.
"""

import ctypes
import gc
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MISSING = object()
# Bytes from a dictionary's address to its count: behind its own count of references, its type and its length.
_COUNT = 24
# As they were before anything replaced them.
_all, _map, _same = all, map, operator.is_
_code, _value = operator.attrgetter("__code__"), operator.attrgetter("value")


class Meanings:
    """Names, each with what it meant when it was taken down."""

    def __init__(self) -> None:
        """No name yet."""
        self._held: list[tuple[str, Mapping[str, Any], dict[str, tuple[Any, Any]]]] = []
        self._functions: tuple[Any, ...] = ()
        self._codes: tuple[Any, ...] = ()
        self._named: dict[int, str] = {}  # by id of a function
        self._counts: list[ctypes.c_uint64] = []
        self._seen: list[int] = []

    def take(self, label: str, holder: Mapping[str, Any], names: Iterable[str]) -> None:
        """Take down what names mean, and the code of each function among them.

        Args:
            label: what a sentence calls the holder.
            holder: `vars` of a module or a class.
            names: in it; one that it lacks must not come to be there.
        """
        values = {name: holder.get(name, _MISSING) for name in names}
        meant = {name: (value, getattr(value, "__code__", None)) for name, value in values.items()}
        coded = [found for found in meant.values() if found[1] is not None]
        self._functions += tuple(value for value, _ in coded)
        self._codes += tuple(code for _, code in coded)
        self._named.update((id(value), f"{label}.{name}") for name, (value, code) in meant.items() if code is not None)
        self._held.append((label, holder, meant))
        if _COUNTED:
            self._counts.append(_count(holder))
            self._seen.append(-1)

    def name(self, function: object) -> str:
        """Return label.name of a function that was taken down; "" of another one."""
        return self._named.get(id(function), "")

    def replaced(self, *, thorough: bool) -> Iterator[str]:
        """Yield label.name of what has another meaning, and has had it since this was asked last.

        Args:
            thorough: look at the code of every function too, whose exchange an audit event tells.
        """
        if thorough and not _all(_map(_same, _map(_code, self._functions), self._codes)):
            self._seen = [-1] * len(self._counts)  # a function of ours may do something else under its old name
        now = list(_map(_value, self._counts)) or [0] * len(self._held)
        if now == self._seen:
            return
        before, self._seen = self._seen or [-1] * len(now), now if _COUNTED else []
        for (label, holder, meant), count, last in zip(self._held, now, before, strict=True):
            if count != last:
                yield from (f"{label}.{name}" for name in _other(holder, meant))


def _other(holder: Mapping[str, Any], meant: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for name, (value, code) in meant.items():
        now = holder.get(name, _MISSING)
        if now is not value or (code is not None and getattr(now, "__code__", None) is not code):
            yield name


def _count(holder: Mapping[str, Any]) -> ctypes.c_uint64:
    """Where the dictionary behind a holder counts its changes."""
    plain = holder if type(holder) is dict else next(d for d in gc.get_referents(holder) if type(d) is dict)
    return ctypes.c_uint64.from_address(id(plain) + _COUNT)


def _counts_changes() -> bool:
    """Try whether the number there is another one after every change, and only then."""
    trial: dict[str, int] = {f"name {n}": n for n in range(100)}
    count = ctypes.c_uint64.from_address(id(trial) + _COUNT)
    seen = [count.value]
    for n in range(100):
        trial[f"name {n}"] = n + 1
        seen.append(count.value)
    for change in (lambda: trial.update(more=1), lambda: trial.pop("more"), trial.popitem, trial.clear):
        change()
        seen.append(count.value)
    steady = count.value == count.value == seen[-1] and not trial.get("more")
    return steady and len(set(seen)) == len(seen)


_COUNTED = _counts_changes()
