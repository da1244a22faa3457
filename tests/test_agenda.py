"""What a team does for a target: everything once, by whom it may be done, and what takes long first."""

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import Pipe
from typing import Any

import pytest

from linverify import registry
from linverify.agenda import shared_out, tasks
from linverify.case import Case, parse_case
from linverify.company import OWN_PROCESS
from linverify.dealing import PREPARE, Task, deal
from linverify.insights import Worst
from linverify.plan import Plan
from linverify.silence import Silence
from tests.test_session import Heard

LAWS = [law.name for law in registry.properties().values()]
PLAN = Plan("kernel.py::f", "gla", dtypes=("fp32", "bf16"))


class Fake:
    """Tells one piece of news, then answers with what it was asked."""

    def __init__(self) -> None:
        self.connection, self._theirs = Pipe(duplex=False)
        self.asked: list[tuple[object, ...]] = []

    def ask(self, *question: object) -> None:
        self.asked.append(question)
        self._theirs.send(("judged", "a law", f"case {question[1]}", None))
        self._theirs.send(("answer", question[1]))

    def receive(self) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self.connection.recv()
        return found

    def kill(self) -> None: ...

    def close(self) -> None: ...


def test_basic_laws_begin_and_what_takes_long_follows() -> None:
    found = tasks(PLAN, LAWS, 3)
    assert sorted(t.about for t in found if t.kind == "ask") == sorted(LAWS)
    kinds = [(t.kind, registry.property_named(t.about).basic) if t.kind == "ask" else (t.kind, None) for t in found]
    assert kinds[:5] == [("ask", True)] * 3 + [("study", None)] * 2
    assert [t.about for t in found if t.kind == "study"] == ["fp32", "bf16"]
    assert [t.only for law in OWN_PROCESS for t in found if t.about == law] == [0, 1]
    assert {t.only for t in tasks(PLAN, LAWS, 1)} == {None, 0}
    assert {t.about for t in found[5:8]} == {"form_equivalence", "call_sequences", "changed_borders"}
    place = next(n for n, t in enumerate(found[5:]) if t.about == "plain_process")
    assert abs(2 * place - len(found[5:])) <= 2
    weights = [registry.property_named(t.about).weight for t in found[8:]]
    assert max(weights) == weights[0] > min(weights)


def test_on_a_gpu_all_wait_for_what_is_compiled() -> None:
    found = tasks(replace(PLAN, device="cuda:0"), LAWS, 3)
    assert found[0] is PREPARE
    assert all(t.waits for t in found[1:])
    assert [replace(t, waits=False) for t in found[1:]] == tasks(replace(PLAN, device="cpu"), LAWS, 3)


def test_studies_take_no_time_from_laws() -> None:
    limited = tasks(replace(PLAN, time=60.0), LAWS, 3)
    assert [t.kind for t in limited[-2:]] == ["study", "study"]
    assert all(t.kind == "ask" for t in tasks(replace(PLAN, fail_fast=True), LAWS, 3))


def test_every_task_is_answered_once_by_one_who_may() -> None:
    members = [Fake(), Fake(), Fake()]
    heard, answers = Heard(), dict[object, object]()
    asked = [Task("x", n, 1 if n % 4 == 0 else None) for n in range(20)]

    def answered(task: Task, answer: object) -> None:
        assert task.about not in answers
        answers[task.about] = answer

    deal(members, asked, heard, lambda t: (t.kind, t.about), answered)
    assert answers == {n: n for n in range(20)}
    assert {q[1] for q in members[1].asked} >= {0, 4, 8, 12, 16}
    assert sorted(str(q[1]) for m in members for q in m.asked) == sorted(map(str, range(20)))
    assert len(heard.cases) == 20
    deal(members, [], Silence(), lambda t: (t.kind,), answered)


def test_a_member_is_spared_once_when_nothing_is_left_for_it() -> None:
    members = [Fake(), Fake(), Fake()]
    asked = [Task("x", 0, 2), *(Task("x", n, 1) for n in range(1, 6))]
    left, spared = {0, 1, 2, 3, 4, 5}, list[tuple[int, int]]()
    deal(
        members,
        asked,
        Silence(),
        lambda t: (t.kind, t.about),
        lambda task, _: left.discard(task.about),
        lambda member: spared.append((members.index(member), len(left))),
    )
    assert spared[0] == (0, 6)  # before anything is answered
    assert sorted(place for place, _ in spared) == [0, 1, 2]
    assert spared[-1] == (1, 0)
    assert dict(spared)[2] > 0


def test_what_waits_is_put_when_it_is_ready_or_everything_is() -> None:
    first, other = Fake(), Fake()

    def prepared(*question: object) -> None:  # answers when the last that was told of is under way
        first.asked.append(question)
        if question[0] == "prepare":
            first._theirs.send(("ready", "b"))
            first._theirs.send(("ready", "c"))

    def asked(*question: object) -> None:
        Fake.ask(other, *question)
        if question[1] == "c":
            first._theirs.send(("answer", None))

    first.ask, other.ask = prepared, asked  # type: ignore[method-assign]
    wanted = [PREPARE, *(Task("ask", about, None, waits=True) for about in "abc"), Task("ask", "now")]
    answers: list[object] = []

    def answered(task: Task, answer: object) -> None:
        answers.append(answer)
        first.ask = lambda *question: Fake.ask(first, *question)  # type: ignore[method-assign]

    deal([first, other], wanted, Silence(), lambda t: (t.kind, t.about), answered)
    assert [q[1] for q in other.asked[:3]] == ["now", "b", "c"]
    assert answers[:2] == ["now", "b"]
    assert sorted(map(str, answers)) == ["a", "b", "c", "now"]


def seen(*shares: tuple[str, str, float, int]) -> Worst:
    return {(result, dtype): (share, case(T)) for result, dtype, share, T in shares}


def case(T: int) -> Case:
    return parse_case(f"gla/B1.T{T}.H1.K4.V6/fp32")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_worst_cases_go_to_who_remembers_them_and_evenly(count: int) -> None:
    busy = seen(*((f"d{n}", "fp32", 0.5, 10 + n) for n in range(10)))
    other = seen(("d0", "fp32", 0.4, 3), ("o", "bf16", 0.1, 4), ("state", "bf16", 0.2, 4))
    dealt = shared_out([busy, other, *[{}] * count])
    every: dict[tuple[str, str], tuple[float, Case]] = {}
    for part in dealt:
        assert not every.keys() & part.keys()
        every |= part
    assert every == {**other, **busy}, "the worst of each result and dtype, once"
    assert dealt[0].keys() <= busy.keys()
    assert dealt[1].keys() >= {("o", "bf16"), ("state", "bf16")}, "results of one case stay together"
    assert max(map(len, dealt)) <= -(-len(every) // len(dealt)) + 1
    assert sizes(shared_out([{}, {}])) == [0, 0]


def sizes(dealt: Sequence[Worst]) -> list[int]:
    return [len(part) for part in dealt]
