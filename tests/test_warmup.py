"""Compiling ahead: what is asked of the compilers, when they start, and that they end."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
import torch

from linverify import bench, registry, warmup
from linverify.bench import Signature, signature
from linverify.case import Case
from linverify.compiled import Compiled
from linverify.draw import problem
from linverify.errors import CannotCheckError
from linverify.needs import ANY, FIRST, LATER, Need
from linverify.plan import Plan
from linverify.problem import Call, Fault
from linverify.target import parse
from linverify.warmup import Compilers, compile_ahead, foreseen

GLA = registry.operator("gla")


class Fake:
    """A runner that remembers what it was asked."""

    made: ClassVar["list[Fake]"] = []

    def __init__(self) -> None:
        self.calls, self.closed, self.bound = 0, False, 0
        Fake.made.append(self)

    def run(self, program: Any, *, time_limit: float, patience: float) -> None:
        self.calls += 1
        raise Fault("crash", "which is no verdict here", "")

    def close(self) -> None:
        self.closed = True


def bind(runner: Any) -> None:
    runner.bound += 1


def ahead(drawn: list[int], known: Compiled, start: Callable[[], Any], note: Callable[[str], None]) -> None:
    compile_ahead(cases(drawn), GLA, known, Compilers(start), bind, note)


@pytest.fixture(autouse=True)
def three_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warmup, "lanes", lambda: 3)
    monkeypatch.setattr(Fake, "made", [])


def need(task: str, dtype: str, turn: int = FIRST) -> Need:
    return Need(task, turn, [Call(problem(Case("gla", 1, 3, 1, 16, 16, dtype=dtype), GLA))])


def cases(started: list[int]) -> Iterator[Need]:
    for dtype in ("fp32", "bf16"):
        started.append(len(Fake.made))
        yield need("agreement", dtype)


def test_compilers_start_before_the_cases_are_drawn_where_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[bool] = []
    plain = warmup.Compilers.begin
    monkeypatch.setattr(warmup.Compilers, "begin", lambda self: (begun.append(not drawn), plain(self))[1])
    drawn: list[int] = []
    notes: list[str] = []
    known = Compiled("k.py", "")
    ahead(drawn, known, Fake, notes.append)
    assert begun[0]
    assert notes == ["compiling 2 signatures beforehand"]
    assert sum(fake.calls for fake in Fake.made) == 2
    assert [fake.bound for fake in Fake.made] == [1, 1, 1]
    assert all(fake.closed for fake in Fake.made)


def test_a_chunk_no_longer_than_its_sequence_is_compiled_for_each_length() -> None:
    def made(T: int) -> Signature:
        return signature(Call(problem(Case("gla", 1, T, 1, 16, 16), GLA)), GLA)

    assert len({made(T) for T in (1, 2, 16, 17, 32, 50, 64)}) == 7
    assert made(2) == made(15)
    assert made(50) == made(65) == made(4001)
    assert made(64) == made(80) == made(4096)


def test_what_is_compiled_starts_no_compiler() -> None:
    known = Compiled("k.py", "")
    ahead([], known, Sound, [].append)
    Fake.made.clear()
    again = Compiled("k.py", "")
    assert not again.cold
    ahead([], again, Sound, lambda text: pytest.fail(text))
    assert not Fake.made


class Sound(Fake):
    """It answers."""

    def run(self, program: Any, *, time_limit: float, patience: float) -> None:
        self.calls += 1


def test_a_compiler_that_does_not_start_is_no_trouble() -> None:
    def refuse() -> Any:
        raise CannotCheckError("no room")

    ahead([], Compiled("k.py", ""), refuse, [].append)


class Endless(Fake):
    """Its first call is killed."""

    def run(self, program: Any, *, time_limit: float, patience: float) -> None:
        self.calls += 1
        assert patience == bench.HANG_SECONDS < time_limit
        raise Fault("hang", "no answer", "")


def test_a_kernel_that_never_ends_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "lanes", lambda: 1)
    known = Compiled("k.py", "")
    ahead([], known, Endless, [].append)
    assert [fake.calls for fake in Fake.made] == [1]
    assert Fake.made[0].closed
    assert known.cold


def test_processes_are_foreseen_where_everything_has_to_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "started", lambda *_: Fake())
    kernel, plain = tmp_path / "kernel.py", tmp_path / "plain.py"
    kernel.write_text("import triton\n")
    plain.write_text("import torch\n")

    def asked(file: Path, device: str, *laws: str) -> Compilers | None:
        return foreseen(Plan(f"{file}::f", "gla", device=device, properties=laws), parse(f"{file}::f"))

    assert asked(kernel, "cpu") is None
    assert asked(plain, "cuda:0") is None
    assert asked(kernel, "cuda:0", "configurations") is None, "it compiles by itself"
    assert not Fake.made
    found = asked(kernel, "cuda:0")
    assert found is not None
    known = Compiled(f"{kernel}::f", str(kernel), "pin")
    compile_ahead(cases([]), GLA, known, found, bind, [].append)
    assert len(Fake.made) == 3, "these and no others compiled"
    assert all(fake.closed for fake in Fake.made)
    known.finish("these cases")
    assert asked(kernel, "cuda:0") is None, "something was compiled for it before"
    assert asked(plain, "cuda:0") is None


def test_what_still_starts_is_not_waited_for_and_ends() -> None:
    go, made = Event(), list[Fake]()

    def slowly() -> Any:
        go.wait()
        made.append(Fake())
        return made[-1]

    compilers = Compilers(slowly)
    compilers.begin()
    compilers.close()
    assert not made
    go.set()
    compilers._pool.shutdown(wait=True)
    assert made
    assert all(fake.closed for fake in made)


def test_a_task_is_ready_when_all_that_it_calls_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "lanes", lambda: 1)
    order: list[object] = []

    class Told(Sound):
        def run(self, program: Any, *, time_limit: float, patience: float) -> None:
            order.append(signature(program.calls[0], GLA)[0][0][1])

    asked = [need("later", "fp16", LATER), need("basic", "bf16"), need("both", "bf16", LATER)]
    asked += [need("both", "fp16", LATER), Need("nothing", LATER, []), need("basic", "fp32")]
    asked += [need("study", "bf16", ANY), Need("free", ANY, [])]
    compile_ahead(asked, GLA, Compiled("k.py", ""), Compilers(Told), bind, [].append, order.append)
    basic = ["free", torch.bfloat16, "study", torch.float32, "basic", "nothing"]
    assert order == [*basic, torch.float16, "later", "both"], "what others wait for comes first"


def test_a_refusal_or_a_crash_holds_nobody_up() -> None:
    told: list[str] = []
    asked = [need("basic", "bf16"), need("other", "fp32", LATER)]
    compile_ahead(asked, GLA, Compiled("k.py", ""), Compilers(Fake), bind, [].append, told.append)
    assert sorted(told) == ["basic", "other"]
