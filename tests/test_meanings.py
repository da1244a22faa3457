"""A name that means something else is named, with and without a dictionary's own count of its changes."""

import math
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from linverify import meanings
from linverify.meanings import Meanings


class Held:
    """A class whose members are taken down."""

    state = 0

    def method(self) -> int:
        """Return a number."""
        return 1


def other() -> int:
    """Return another number."""
    return 2


@pytest.fixture(params=[True, False], ids=["counted", "every name"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.setattr(meanings, "_COUNTED", request.param and meanings._COUNTED)
    found = types.ModuleType("found")
    vars(found).update(function=types.FunctionType(other.__code__, {}), constant=math.pi, more=[])
    monkeypatch.setattr(Held, "method", Held.method)
    return found


def taken(module: types.ModuleType) -> Meanings:
    names = Meanings()
    names.take("found", vars(module), ["function", "constant", "lacking"])
    names.take("found.Held", vars(Held), ["method", "__len__"])
    assert list(names.replaced(thorough=True)) == []
    return names


CHANGES: tuple[tuple[str, Callable[[Any], object]], ...] = (
    ("found.function", lambda m: setattr(m, "function", other)),
    ("found.function", lambda m: delattr(m, "function")),
    ("found.function", lambda m: setattr(m.function, "__code__", (lambda: 3).__code__)),
    ("found.constant", lambda m: setattr(m, "constant", m.constant + 0.0 * 1e9)),  # equal, and not the same
    ("found.constant", lambda m: vars(m).update(constant=3)),
    ("found.lacking", lambda m: setattr(m, "lacking", None)),
    ("found.Held.method", lambda _: setattr(Held, "method", other)),
    ("found.Held.__len__", lambda _: setattr(Held, "__len__", other)),
)


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_a_name_with_another_meaning_is_told(change: int, module: types.ModuleType) -> None:
    names = taken(module)
    wanted, made = CHANGES[change]
    try:
        made(module)
        assert list(names.replaced(thorough=True)) == [wanted]
    finally:
        if "__len__" in vars(Held):
            del Held.__len__  # type: ignore[attr-defined]


def test_what_was_not_taken_down_may_change(module: types.ModuleType) -> None:
    names = taken(module)
    vars(module).update(more=1, another=2)
    Held.state += 1
    assert list(names.replaced(thorough=True)) == []
    vars(module).update(function=other)  # a change is seen behind others that mean nothing
    assert list(names.replaced(thorough=True)) == ["found.function"]


def test_an_exchanged_code_is_asked_for_or_told_by_an_event(module: types.ModuleType) -> None:
    names = taken(module)
    module.function.__code__ = (lambda: 3).__code__
    assert names.name(module.function) == "found.function"
    assert names.name(other) == names.name(module) == ""
    if meanings._COUNTED:
        assert list(names.replaced(thorough=False)) == []
    assert list(names.replaced(thorough=True)) == ["found.function"]


_EXCHANGED_FOR_A_WHILE = """
from linverify import hygiene
from linverify.watch import Watch
watch = Watch("target")
watch.install()
watch.findings()
code = hygiene.kept.__code__
hygiene.kept.__code__ = (lambda calls: {}).__code__
hygiene.kept.__code__ = code
print(watch.findings())
"""


def test_a_code_that_is_put_back_is_seen() -> None:
    said = subprocess.run([sys.executable, "-c", _EXCHANGED_FOR_A_WHILE], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "('the target replaced linverify.hygiene.kept',)"


def test_a_count_that_tells_nothing_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """At other places of a dictionary lie its type and its length, and what an update of a value leaves as it is."""
    for place in (8, 16, 32):
        monkeypatch.setattr(meanings, "_COUNT", place)
        assert not meanings._counts_changes()
