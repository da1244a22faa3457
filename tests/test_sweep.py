"""--autotune all: every configuration of every kernel is forced and judged, the wrong ones are named, a sweep goes on."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from linverify import registry
from linverify.cli import main
from linverify.errors import CannotCheckError
from linverify.problem import Fault, Launched, Problem, Program, Refused, Result
from linverify.reports import json_file
from linverify.reports.configurations_table import configurations_table
from linverify.reports.console import plain
from linverify.runner import Runner
from linverify.sweep import Answer, Lanes, swept, told
from linverify.verdict import Configuration, Status
from tests.worker_harness import Everything, problem

KERNELS = Path(__file__).with_name("sweep_kernels.py")
LISTS = {"long": ("a", "b", "c", "d"), "short": ("x", "y"), "single": ("one",)}
PROBLEM = Problem({"q": torch.zeros(1)})


class Device:
    """A runner of kernels whose configurations do what `does` says: wrong, unfit, refused or crash."""

    def __init__(self, does: dict[tuple[str, str], str], asked: list[Program]) -> None:
        self.does, self.asked = does, asked

    def run(self, program: Program, *, time_limit: float) -> tuple[Result, ...]:
        assert time_limit == 9.0
        self.asked.append(program)
        launched, value = [], 0.0
        for kernel, known in LISTS.items():
            place = program.place if not program.only or kernel in program.only else 0
            place = place if place < len(known) else 0
            unfit = []
            while (what := self.does.get((kernel, known[place]), "")) == "unfit":
                unfit.append(place)
                place = (place + 1) % len(known)
            if what == "refused":
                raise Refused("CompilationError", f"{kernel} {known[place]}")
            if what == "crash":
                raise Fault("crash", "illegal memory access")
            value += what == "wrong"
            launched.append(Launched(kernel, known, place, tuple(unfit)))
        return (Result(torch.tensor(value), launched=tuple(launched)),)

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


def judge(answer: Answer) -> tuple[Status, str]:
    if isinstance(answer, Refused):
        return Status.REFUSED, str(answer)
    if isinstance(answer, Fault):
        return Status.VIOLATION, str(answer)
    assert answer.o is not None
    return (Status.VIOLATION, "off") if answer.o else (Status.PASS, "")


@pytest.fixture
def sweep() -> Callable[..., tuple[dict[tuple[str, str], Configuration], list[Program]]]:
    def run(
        does: dict[tuple[str, str], str], known: Sequence[Configuration] = (), stop_after: int = 99
    ) -> tuple[dict[tuple[str, str], Configuration], list[Program]]:
        asked: list[Program] = []
        lanes = Lanes(lambda: Device(does, asked), 3, 9.0)  # type: ignore[arg-type,return-value]
        found: list[Configuration] = []
        before = {(c.case_id, c.kernel, c.configuration): c for c in known}
        try:
            (first,) = Device(does, []).run(Program(()), time_limit=9.0)
            found.extend(swept(lanes, PROBLEM, "case", first, judge, before, lambda: len(found) >= stop_after))
        finally:
            lanes.close()
        assert len({(c.kernel, c.configuration) for c in found}) == len(found)
        return {(c.kernel, c.configuration): c for c in found}, asked

    return run


EVERY = {(kernel, c) for kernel, known in LISTS.items() for c in known}


def test_as_many_runs_as_the_longest_list(sweep) -> None:  # type: ignore[no-untyped-def]
    found, asked = sweep({})
    assert found.keys() == EVERY
    assert {c.status for c in found.values()} == {Status.PASS}
    assert sorted(p.place for p in asked) == [1, 2, 3]


@pytest.mark.parametrize(
    ("does", "status"), [("wrong", Status.VIOLATION), ("refused", Status.REFUSED), ("crash", Status.VIOLATION)]
)
@pytest.mark.parametrize("where", [("long", "b"), ("short", "y"), ("long", "d")])
def test_the_one_at_fault_is_named(sweep, does: str, status: Status, where: tuple[str, str]) -> None:  # type: ignore[no-untyped-def]
    found, asked = sweep({where: does})
    assert found.keys() == EVERY
    assert {key for key, c in found.items() if c.status is not Status.PASS} == {where}
    assert found[where].status is status
    assert found[where].note
    assert len(asked) == (3 if where == ("long", "d") else 5)  # alone in its run it needs no further one


def test_two_at_fault_in_one_run_are_both_named(sweep) -> None:  # type: ignore[no-untyped-def]
    found, _ = sweep({("long", "b"): "wrong", ("short", "y"): "crash"})
    assert {k for k, c in found.items() if c.status is Status.VIOLATION} == {("long", "b"), ("short", "y")}


def test_what_the_device_has_no_room_for_is_refused_and_hides_nothing(sweep) -> None:  # type: ignore[no-untyped-def]
    found, _ = sweep({("long", "c"): "unfit", ("long", "d"): "wrong"})
    assert found["long", "c"].status is Status.REFUSED
    assert "fit" in found["long", "c"].note
    assert found["long", "d"].status is Status.VIOLATION


def test_a_pinned_configuration_that_is_wrong_is_found_too(sweep) -> None:  # type: ignore[no-untyped-def]
    found, _ = sweep({("short", "x"): "wrong"})
    assert found["short", "x"].status is Status.VIOLATION
    assert found["short", "y"].status is found["long", "b"].status is Status.PASS  # that run is right
    assert found["long", "c"].status is Status.MARGINAL


def test_a_process_that_does_not_start_is_told() -> None:
    def start() -> Runner:
        raise CannotCheckError("no such device")

    lanes = Lanes(start, 3, 9.0)
    with pytest.raises(CannotCheckError, match="no such device"):
        lanes.ask(PROBLEM, 1).result()
    lanes.close()


def test_a_sweep_goes_on_where_it_was_stopped(sweep) -> None:  # type: ignore[no-untyped-def]
    first, _ = sweep({("long", "b"): "wrong"}, stop_after=3)
    assert 3 <= len(first) < len(EVERY)
    rest, asked = sweep({("long", "b"): "wrong"}, known=tuple(first.values()))
    assert rest.keys() | first.keys() == EVERY
    assert not rest.keys() & first.keys()
    again, asked = sweep({}, known=tuple(replace(c, case_id="case") for c in (first | rest).values()))
    assert again == {}
    assert asked == []


def test_it_is_told_in_a_sentence_and_a_table() -> None:
    found = [
        Configuration("m.f", "a", Status.PASS, "1"),
        Configuration("m.f", "b", Status.VIOLATION, "1", "o is off"),
        Configuration("m.g", "c", Status.REFUSED, "1", "does not fit this device"),
        Configuration("m.f", "a", Status.PASS, "2"),
    ]
    assert told(found) == "3 configurations of 2 kernels: 1 right, 1 wrong, 1 refused or without room"
    console = plain()
    console.print(configurations_table(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "o is off" in text
    assert [line.split() for line in text.splitlines() if line.startswith("f ")] == [["f", "1", "1", "-", "-"]]


def test_a_sweep_is_not_compiled_for_beforehand() -> None:
    """Its own processes compile, each for all of them; others would import the target a second time."""
    laws = registry.properties().values()
    assert {law.name for law in laws if not law.compiled_for} == {"configurations", "long_sequences"}


def test_closing_does_not_wait_for_what_still_runs() -> None:
    everything = Everything()
    lanes = Lanes(lambda: everything.runner("hang"), 1, 60.0)
    asked = lanes.ask(problem(), 0)
    while not asked.running():
        time.sleep(0.1)
    time.sleep(2.0)
    start = time.monotonic()
    lanes.close()
    assert time.monotonic() - start < 10
    assert isinstance(asked.result(), Fault)


def words(record: Path, *more: str) -> list[str]:
    plain_words = ["check", f"{KERNELS}::attention", "--device", "cpu", "--dtype", "fp32", "--profile", "quick"]
    sweep_words = ["--autotune", "all", "--property", "configurations", "--require", "configurations"]
    return [*plain_words, *sweep_words, "--json", str(record), *more]


def test_a_check_lists_every_configuration_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    whole, cut, resumed = (tmp_path / f"{name}.json" for name in ("whole", "cut", "resumed"))
    assert main(words(whole)) == 1
    out = capfd.readouterr().out
    (result,) = json_file.read(whole).results
    (wrong,) = [c for c in result.configurations if c.status is not Status.PASS]
    assert len(result.configurations) == 5
    assert wrong.kernel.endswith("._attended")
    assert wrong.configuration.startswith("STEP: 32")
    assert "STEP: 32" in out
    (law,) = result.properties
    assert (law.status, law.note) == (Status.VIOLATION, "5 configurations of 2 kernels: 4 right, 1 wrong")

    record = json.loads(whole.read_text())
    (target,) = record["results"]
    target["configurations"] = [{**c, "note": "kept"} for c in target["configurations"] if c["status"] == "pass"][:2]
    cut.write_text(json.dumps(record))
    assert main(words(resumed, "--resume", str(cut))) == 1
    (again,) = json_file.read(resumed).results
    assert [c.note for c in again.configurations].count("kept") == 2
    assert {c.configuration for c in again.configurations} == {c.configuration for c in result.configurations}
