"""Dealing: tasks given out to the members of a team, the next one to whoever is free."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from linverify.plan import Listener


class Member(Protocol):
    """One examiner of a team, wherever it runs."""

    connection: "Connection[Any, Any]"

    def ask(self, *question: object) -> None:
        """Put a question; the answer comes on the connection."""

    def receive(self) -> tuple[Any, ...]:
        """Return the next message; raise what it says went wrong."""

    def kill(self) -> None:
        """Have it end, soon."""

    def close(self) -> None:
        """End it; whatever it does is lost. Idempotent."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one member is to do.

    Attributes:
        kind: the question's name.
        about: what it is about: a law's name, a dtype, cases.
        only: place of the one member that may be asked; None for anybody.
        waits: whether it is put only once a member has told that what it is about is ready, or that everything is.
    """

    kind: str
    about: Any
    only: int | None = None
    waits: bool = False


# The task that readies what others wait for; its answer says that everything is ready.
PREPARE = Task("prepare", None, 0)
# Hears of a member for which nothing is left, while others go on.
Spare = Callable[[Member], None]


def stays(_: Member) -> None:
    """Leave a member that has nothing left to do as it is."""


def deal(
    members: Sequence[Member],
    tasks: Iterable[Task],
    listener: Listener,
    question: Callable[[Task], Sequence[object]],
    answered: Callable[[Task, Any], None],
    spare: Spare = stays,
) -> None:
    """Ask until every task is answered.

    Args:
        members: who is asked; each takes the first task that it may.
        tasks: what takes long comes first: at the end nobody waits for it.
        listener: hears what members tell on the way.
        question: makes a task's question, when it is put.
        answered: takes each answer, when it comes.
        spare: hears of each member for which nothing is left.
    """
    left, serving = list(tasks), dict(enumerate(members))
    waiting = {t.about for t in left if t.waits}
    busy: dict[Connection[Any, Any], tuple[int, Task]] = {}

    def give() -> None:
        for place, member in [(p, m) for p, m in serving.items() if m.connection not in busy]:
            own = [t for t in left if t.only in (None, place)]
            task = next((t for t in own if not (t.waits and t.about in waiting)), None)
            if task is not None:
                left.remove(task)
                member.ask(*question(task))
                busy[member.connection] = place, task
            elif not own:
                spare(serving.pop(place))

    give()
    while busy:
        for heard in wait(list(busy)):
            place, task = busy[heard]  # type: ignore[index]  # wait returns what it was given
            message = members[place].receive()
            if message[0] == "ready":
                waiting.discard(message[1])
            elif told(message, listener):
                continue
            else:
                del busy[members[place].connection]
                if task is PREPARE:
                    waiting.clear()
                else:
                    answered(task, message[1])
            give()


def told(message: tuple[Any, ...], listener: Listener) -> bool:
    """Pass news on to the listener; False for an answer."""
    hear: dict[str, Callable[..., None]] = {
        "judged": listener.case_judged,
        "settled": listener.configuration_settled,
        "note": listener.note,
    }
    if message[0] not in hear:
        return False
    hear[message[0]](*message[1:])
    return True
