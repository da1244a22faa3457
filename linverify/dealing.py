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
    """

    kind: str
    about: Any
    only: int | None = None


def deal(
    members: Sequence[Member],
    tasks: Iterable[Task],
    listener: Listener,
    question: Callable[[Task], Sequence[object]],
    answered: Callable[[Task, Any], None],
) -> None:
    """Ask until every task is answered.

    Args:
        members: who is asked; each takes the first task that it may.
        tasks: what takes long comes first: at the end nobody waits for it.
        listener: hears what members tell on the way.
        question: makes a task's question, when it is put.
        answered: takes each answer, when it comes.
    """
    left = list(tasks)
    busy: dict[Connection[Any, Any], tuple[int, Task]] = {}

    def give(place: int) -> None:
        task = next((t for t in left if t.only in (None, place)), None)
        if task is not None:
            left.remove(task)
            members[place].ask(*question(task))
            busy[members[place].connection] = place, task

    for place in range(len(members)):
        give(place)
    while busy:
        for ready in wait(list(busy)):
            place, task = busy[ready]  # type: ignore[index]  # wait returns what it was given
            message = members[place].receive()
            if not told(message, listener):
                answered(task, message[1])
                del busy[members[place].connection]
                give(place)


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
