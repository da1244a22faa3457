"""An examiner: a process of a session that asks some laws of a target, as ``linverify check -n`` starts them.

``python -P -m linverify.examiner FD CONTROL NAME`` greets on the first socket and answers questions, each a name and what goes
with it; the second is the session's fork server by that name:

    plan     what is asked from now on, and whether this examiner compiles for all; imports the target
    next     begins with the next function: its name, operator and laws, and whether it is the last; None after that
    prepare  starts and compiles what the laws will need; tells each task for which all is compiled
    start    starts what one law will need, and answers at once
    ask      asks one law; cases and notes are told as they come, then the result
    ledger   what this process has seen of the function
    study    asks for what there is to tell of a dtype besides verdicts: the recipe, and growth
    look     looks into cases that used most of their budget, whoever judged them
    cross    asks a law that holds about a case that fails
    finish   makes the record, from the results of all examiners and what they have seen
    close    is done with the function

The target runs in processes of this examiner's own, as in any session.
"""

import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from linverify import processes, registry
from linverify.case import Case
from linverify.crossing import Crossed
from linverify.errors import LinverifyError
from linverify.examination import Examination
from linverify.examples import SharedExamples
from linverify.fingerprint import fingerprint
from linverify.insight import Insight, RecipeMatch
from linverify.insights import Worst
from linverify.ledger import Ledger
from linverify.limber import limber
from linverify.plan import Plan
from linverify.runner import Runner
from linverify.session import asked, examinations, open_runner
from linverify.shared import Shared
from linverify.standing import Elsewhere, Standing
from linverify.target import parse
from linverify.verdict import Configuration, PropertyResult, TargetResult
from linverify.warmup import Compilers, foreseen

Begun = tuple[str, str, list[str], bool]


class Examiner:
    """Answers the session that started it; also the listener of its own examinations."""

    def __init__(self, tell: Callable[[tuple[object, ...]], None], examples: SharedExamples | None = None) -> None:
        """Nothing is examined yet.

        Args:
            tell: takes news to the session.
            examples: failing cases that the session's workers share.
        """
        self._tell = tell
        self._shared = Shared(examples)
        self._runner: Runner | None = None
        self._left: Iterator[Examination] = iter(())
        self._after = 0
        self._examination: Examination | None = None
        self._compilers: Compilers | None = None
        self._answers: dict[str, Callable[..., object]] = {
            "plan": self._plan,
            "next": self._next,
            "prepare": self._prepare,
            "start": self._begin,
            "ask": self._ask,
            "ledger": self._ledger,
            "study": self._study,
            "look": self._look,
            "cross": self._cross,
            "finish": self._finish,
            "close": self._close,
        }

    def serve(self, connection: "Connection[Any, Any]") -> None:
        """Answer on a connection until the session goes away."""
        self._tell(("answer", fingerprint()))
        try:
            while True:
                name, *arguments = connection.recv()
                self._tell(self.answered(name, arguments))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
        finally:
            self.close()

    def close(self) -> None:
        """End every process of this examiner; idempotent."""
        self._close()
        self._end_compilers()
        if self._runner is not None:
            self._runner.close()

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        """Tell the session."""
        self._tell(("judged", name, case_id, share))

    def configuration_settled(self, found: Configuration) -> None:
        """Tell the session."""
        self._tell(("settled", found))

    def note(self, text: str) -> None:
        """Tell the session."""
        self._tell(("note", text))

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        """The session says so itself."""

    def property_started(self, name: str) -> None:
        """The session says so itself."""

    def property_finished(self, result: PropertyResult) -> None:
        """The session says so itself."""

    def target_finished(self, result: TargetResult) -> None:
        """The session says so itself."""

    def answered(self, name: str, arguments: list[Any]) -> tuple[object, ...]:
        """Return the answer to a question; what goes wrong is an answer, too."""
        try:
            return "answer", self._answers[name](*arguments)
        except LinverifyError as error:
            return "failed", type(error).__name__, str(error)
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            return "failed", "", what

    def _plan(self, plan: Plan, path: Sequence[str], leads: bool) -> None:
        sys.path += [p for p in path if p not in sys.path]  # a module is looked up as the session would look it up
        if self._runner is not None:
            self._runner.close()
        self._end_compilers()
        spec = parse(plan.target)
        self._runner = open_runner(plan, spec)
        self._runner.begin()
        self._compilers = foreseen(plan, spec) if leads else None
        limber(plan.operator, plan.device)
        self._after = len(asked(plan, self._runner))
        self._left = examinations(plan, self._runner, self, self._shared)

    def _next(self) -> Begun | None:
        self._close()
        self._examination = next(self._left, None)
        if self._examination is None:
            return None
        assert self._runner is not None
        self._runner.stand_by()
        e = self._examination
        self._after -= 1
        return e.name, e.operator.name, [law.name for law in e.laws], not self._after

    def _current(self) -> Examination:
        assert self._examination is not None
        return self._examination

    def _prepare(self) -> None:
        compilers, self._compilers = self._compilers, None
        self._current().prepare(compilers, lambda task: self._tell(("ready", task)))

    def _begin(self, law: str) -> None:
        self._current().begin(registry.property_named(law))

    def _ask(self, law: str, standing: Standing) -> tuple[PropertyResult, Standing]:
        return self._current().ask(registry.property_named(law), standing)

    def _ledger(self) -> Ledger:
        return self._current().ledger()

    def _study(self, dtype: str) -> Insight:
        return self._current().study(dtype)

    def _look(self, worst: Worst, recipes: Sequence[RecipeMatch], single: bool) -> Insight:
        self._current().bench.single |= single  # whoever saw it
        return self._current().look(worst, recipes)

    def _cross(self, failing: str, case: Case, law: str, seconds: float) -> Crossed:
        wrong, holds = registry.property_named(failing), registry.property_named(law)
        return self._current().cross(wrong, case, [holds], seconds)

    def _finish(
        self, results: Sequence[PropertyResult], others: Sequence[Ledger], elsewhere: Elsewhere | None
    ) -> TargetResult:
        self._current().take(others)
        return self._current().finish(results, elsewhere=elsewhere)

    def _close(self) -> None:
        if self._examination is not None:
            self._examination.close()
            self._examination = None

    def _end_compilers(self) -> None:
        if self._compilers is not None:
            self._compilers.close()
            self._compilers = None


def main() -> None:
    """Serve on the descriptor that the command line names."""
    torch.set_num_threads(1)  # as every session judges
    processes.borrow(socket.socket(fileno=int(sys.argv[2])), sys.argv[3])
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    Examiner(connection.send).serve(connection)


if __name__ == "__main__":
    main()
