"""What the tasks of a session need compiled, and which of them wait for nothing any more."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock

from linverify.bench import Signature, signature
from linverify.compiled import Compiled
from linverify.inquiry import Inquiry
from linverify.operator import Operator
from linverify.problem import Call
from linverify.scout import calls_of

# Whether a task goes before others, may begin at any time, or is ready only once all that go first are.
FIRST, ANY, LATER = range(3)


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """Calls that a task will make.

    Attributes:
        task: what it is about: a law's name, or a dtype that is studied.
        turn: FIRST, ANY or LATER.
        calls: the calls.
    """

    task: str
    turn: int
    calls: Sequence[Call]


def of_laws(inquiries: Iterable[object], operator: Operator) -> Iterator[Need]:
    """What laws need that are compiled for beforehand, case by case; what is no inquiry asks nothing."""
    for law, drawn in ((i.law, i.cases()) for i in inquiries if isinstance(i, Inquiry) and i.law.compiled_for):
        for case in (case for _, cases in drawn for case in cases):
            turn = FIRST if law.basic else LATER
            yield Need(law.name, turn, calls_of(law, case, operator))


def volume(call: Call) -> int:
    """Elements of a call's inputs."""
    return sum(t.numel() for t in call.problem.tensors.values())


class Needs:
    """Signatures that tasks need and that are not compiled yet.

    Attributes:
        calls: the smallest call of each signature.
    """

    def __init__(
        self, asked: Iterable[Need], operator: Operator, known: Compiled, ready: Callable[[str], None]
    ) -> None:
        """Take down what is asked, and tell what needs nothing.

        Args:
            asked: a task may come several times.
            operator: of the calls.
            known: what is compiled.
            ready: is told each task once that needs nothing any more.
        """
        self.calls: dict[Signature, Call] = {}
        self._missing: dict[str, set[Signature]] = {}
        self._turns: dict[str, int] = {}
        self._ready, self._told, self._lock = ready, set[str](), Lock()
        for need in asked:
            missing = self._missing.setdefault(need.task, set())
            self._turns[need.task] = need.turn
            for call in need.calls:
                made = signature(call, operator)
                if known.holds(made):
                    continue
                missing.add(made)
                if made not in self.calls or volume(call) < volume(self.calls[made]):
                    self.calls[made] = call
        soon = (missing for task, missing in self._missing.items() if self._turns[task] != LATER)
        self._urgent = frozenset[Signature]().union(*soon)
        self._tell()

    def urgent(self, made: Signature) -> bool:
        """Whether a task needs it that waits for no other."""
        return made in self._urgent

    def met(self, made: Signature) -> None:
        """Tell the tasks that waited for this signature alone; for several threads."""
        with self._lock:
            for missing in self._missing.values():
                missing.discard(made)
            self._tell()

    def _tell(self) -> None:
        begun = not any(self._missing[task] for task, turn in self._turns.items() if turn == FIRST)
        for task, missing in self._missing.items():
            if task not in self._told and not missing and (begun or self._turns[task] != LATER):
                self._told.add(task)
                self._ready(task)
