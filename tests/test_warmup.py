"""Compiling ahead: what is asked of the compilers, when they start, and that they end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from linverify import registry, warmup
from linverify.case import Case
from linverify.compiled import Compiled
from linverify.errors import CannotCheckError
from linverify.problem import Fault
from linverify.property import Property
from linverify.warmup import compile_ahead

GLA = registry.operator("gla")


class Fake:
    """A runner that remembers what it was asked."""

    made: ClassVar["list[Fake]"] = []

    def __init__(self) -> None:
        self.calls, self.closed = 0, False
        Fake.made.append(self)

    def run(self, program: Any, *, time_limit: float) -> None:
        self.calls += 1
        raise Fault("crash", "which is no verdict here", "")

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def three_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warmup, "lanes", lambda: 3)
    monkeypatch.setattr(Fake, "made", [])


def cases(started: list[int]) -> Iterator[tuple[Property, Case]]:
    law = registry.property_named("agreement")
    for dtype in ("fp32", "bf16"):
        started.append(len(Fake.made))
        yield law, Case("gla", 1, 3, 1, 16, 16, dtype=dtype)


def test_compilers_start_before_the_cases_are_drawn_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[bool] = []
    plain = warmup.Compilers.begin
    monkeypatch.setattr(warmup.Compilers, "begin", lambda self: (begun.append(not drawn), plain(self))[1])
    drawn: list[int] = []
    notes: list[str] = []
    known = Compiled("k.py", "")
    compile_ahead(cases(drawn), GLA, known, Fake, notes.append)  # type: ignore[arg-type]
    assert begun[0]
    assert notes == ["compiling 2 signatures beforehand"]
    assert sum(fake.calls for fake in Fake.made) == 2
    assert len(Fake.made) == 3
    assert all(fake.closed for fake in Fake.made)


def test_what_is_compiled_starts_no_compiler() -> None:
    known = Compiled("k.py", "")
    compile_ahead(cases([]), GLA, known, Sound, [].append)  # type: ignore[arg-type]
    Fake.made.clear()
    again = Compiled("k.py", "")
    assert not again.cold
    compile_ahead(cases([]), GLA, again, Sound, lambda text: pytest.fail(text))  # type: ignore[arg-type]
    assert not Fake.made


class Sound(Fake):
    """It answers."""

    def run(self, program: Any, *, time_limit: float) -> None:
        self.calls += 1


def test_a_compiler_that_does_not_start_is_no_trouble() -> None:
    def refuse() -> Any:
        raise CannotCheckError("no room")

    compile_ahead(cases([]), GLA, Compiled("k.py", ""), refuse, [].append)
