"""The originals in this process: what the unmutated functions answer, asked once and remembered.

A pair of property and case that the original itself breaks convicts no mutant; it is asked only once it matters.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from linverify import session
from linverify.bystander import Bystander
from linverify.case import Case
from linverify.examination import Examination
from linverify.inquiry import Outcome, evaluate
from linverify.problem import Call
from linverify.runner import Runner
from linverify.selftest.equivalence import Answered, answer, call
from linverify.selftest.subject import Kernel, Question, Subject
from linverify.selftest.widened import widened
from linverify.shared import Shared
from linverify.silence import Silence
from linverify.target import parse
from linverify.twin import start_twin
from linverify.verdict import Status

PATIENCE = 10.0  # seconds: an original answers in milliseconds, and what has not answered by then hangs


@dataclass(eq=False)
class Original:
    """One function of the subject, unmutated.

    Attributes:
        check: of it.
        wide: asks its source in float64.
        excluded: whether it fails a question itself, by the question's text.
        reached: whether any case reaches a statement, by its line and column.
    """

    kernel: Kernel
    check: Examination
    wide: Runner
    excluded: dict[str, bool] = field(default_factory=dict)
    reached: dict[tuple[int, int], bool] = field(default_factory=dict)
    _calls: dict[str, Call] = field(default_factory=dict)
    _own: dict[str, Answered] = field(default_factory=dict)
    _wide: dict[str, Answered] = field(default_factory=dict)

    def call(self, case: Case) -> Call:
        """What the case asks."""
        if case.id not in self._calls:
            self._calls[case.id] = call(case, self.check.operator)
        return self._calls[case.id]

    def own(self, case: Case) -> Answered:
        """What it answers in the case's own dtype."""
        if case.id not in self._own:
            self._own[case.id] = answer(self.check.runner, self.call(case), time_limit=PATIENCE)
        return self._own[case.id]

    def exact(self, case: Case) -> Answered:
        """What its source in float64 answers to a case in float64."""
        if case.id not in self._wide:
            self._wide[case.id] = answer(self.wide, self.call(case), time_limit=PATIENCE)
        return self._wide[case.id]

    def breaks(self, question: Question) -> bool:
        """Whether it fails a question itself."""
        if question.text not in self.excluded:
            found = ask(self.check, question)
            self.excluded[question.text] = found.status not in (Status.PASS, Status.MARGINAL)
        return self.excluded[question.text]


def ask(check: Examination, question: Question) -> Outcome:
    """Put a question to a function."""
    bench = check.bench
    if question.law.name == "form_equivalence" and bench.twin is None:
        bench.twin = start_twin(check.operator, check.claim.form, check.plan.device)
    if question.law.name == "plain_process" and bench.bystander is None:
        bench.bystander = Bystander(check.subject)
    return evaluate(bench, question.law, question.case)


class Originals:
    """The originals of a subject; for one process, which closes them."""

    def __init__(self, subject: Subject) -> None:
        self.shared = Shared()
        self._open = ExitStack()
        self.by_name: dict[str, Original] = {}
        try:
            for kernel in subject.kernels:
                # A copy, as its mutants are: what the copying alone does is no fault of a mutant.
                check = self._copied(subject, subject.source, kernel)
                wide = check
                if widened(subject.source) != subject.source:
                    wide = self._copied(subject, widened(subject.source), kernel)
                self.by_name[kernel.name] = Original(kernel, check, wide.runner)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes; idempotent."""
        self._open.close()

    def _copied(self, subject: Subject, text: str, kernel: Kernel) -> Examination:
        return self._open.enter_context(mutated(subject, text, kernel, self.shared))


def written(folder: Path, subject: Subject, text: str, kernel: Kernel) -> str:
    """Write a source under the original's name; return the target text of one of its functions."""
    path = folder / subject.path.name
    path.write_text(text, encoding="utf-8")
    return f"{path}::{kernel.name}"


@contextmanager
def mutated(subject: Subject, text: str, kernel: Kernel, shared: Shared) -> Iterator[Examination]:
    """Within the block: the check of one function of another source.

    Raises:
        UsageError: the source no longer has the function, or it can no longer be called as its operator is.
        CannotCheckError: the source cannot be imported.
    """
    with TemporaryDirectory(prefix="linverify-") as folder:
        target = written(Path(folder), subject, text, kernel)
        plan = replace(subject.plan, target=target)
        spec = parse(target)
        with session.open_runner(plan, spec) as runner:
            (function,) = runner.describe().functions
            check = Examination(plan, spec, runner, function, kernel.claim, Silence(), shared)
            try:
                yield check
            finally:
                check.close()
