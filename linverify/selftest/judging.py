"""What becomes of one mutant: first whether it computes anything else than its original, then whether the check notices."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter

from linverify import session
from linverify.case import Case
from linverify.errors import CannotCheckError, UsageError
from linverify.selftest import equivalence
from linverify.selftest.edit import Edit, lines_changed
from linverify.selftest.equivalence import Answered
from linverify.selftest.originals import PATIENCE, Original, Originals, ask, mutated
from linverify.selftest.reach import raising, statement_of
from linverify.selftest.score import MutantResult, Outcome
from linverify.selftest.subject import Subject
from linverify.selftest.widened import widened
from linverify.session import Check
from linverify.verdict import Status

# A mutant that refuses this many questions of those that its original answers is not asked any more.
_ENOUGH = 24
# Most mutants differ on one of the first cases; whether the others' statement is reached at all is asked then.
_SOON = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a mutant of one function."""

    outcome: Outcome
    law: str = ""
    case_id: str = ""
    reason: str = ""
    questions: int = 0


# Which outcome of several functions of one file is the mutant's.
_WORST = (Outcome.CAUGHT, Outcome.SURVIVED, Outcome.REFUSED, Outcome.EQUIVALENT)


def judge(subject: Subject, originals: Originals, edit: Edit) -> MutantResult:
    """Judge one mutant."""
    start = perf_counter()
    text = edit.applied(subject.source)
    found: list[tuple[Judged, str]] = []
    with session.one_thread():
        for original in originals.by_name.values():
            try:
                judged = _judged(subject, originals, original, edit)
            except (UsageError, CannotCheckError, StopIteration) as error:
                judged = Judged(Outcome.REFUSED, reason=str(error) or "the function is gone")
            found.append((judged, original.check.operator.name))
            if judged.outcome is Outcome.CAUGHT:
                break
    worst, operator = min(found, key=lambda item: _WORST.index(item[0].outcome))
    return MutantResult(
        edit.name(subject.source),
        edit.family,
        edit.what,
        edit.line,
        lines_changed(subject.source, text),
        worst.outcome,
        operator,
        worst.law,
        worst.case_id,
        worst.reason,
        sum(j.questions for j, _ in found),
        perf_counter() - start,
    )


def _judged(subject: Subject, originals: Originals, original: Original, edit: Edit) -> Judged:
    text = edit.applied(subject.source)
    with ExitStack() as stack:
        check = stack.enter_context(mutated(subject, text, original.kernel, originals.shared))
        wide = check
        if widened(text) != text:
            wide = stack.enter_context(mutated(subject, widened(text), original.kernel, originals.shared))
        check.bench.hurried = True  # whether a hang lasts for a minute or for ever is all the same here
        check.bench.slowest = original.check.bench.slowest
        check.bench.twin = original.check.bench.twin
        try:
            difference = _difference(subject, originals, original, edit, check, wide)
            return Judged(Outcome.EQUIVALENT) if difference is None else _asked(original, check, *difference)
        finally:
            original.check.bench.twin, check.bench.twin = check.bench.twin, None  # one for all mutants
            check.bench.close()


def _difference(
    subject: Subject, originals: Originals, original: Original, edit: Edit, check: Check, wide: Check
) -> tuple[str, str] | None:
    """The first case on which the mutant computes something else, and how it differs."""
    cases = original.kernel.compared
    exact = [equivalence.in_float64(c) for c in cases if equivalence.can_widen(c)]
    early, late = exact[:_SOON], exact[_SOON:]
    return _first(early, lambda c: _exactly(original, wide, c)) or (
        None
        if not _reached(subject, originals, original, edit)
        else _first(late, lambda c: _exactly(original, wide, c))
        or _first(cases, lambda c: _closely(original, check, c))
    )


def _first(cases: Sequence[Case], differs: Callable[[Case], str]) -> tuple[str, str] | None:
    return next(((case.id, how) for case in cases if (how := differs(case))), None)


def _exactly(original: Original, wide: Check, case: Case) -> str:
    before = original.exact(case)
    after = equivalence.answer(wide.runner, original.call(case), time_limit=PATIENCE)
    return equivalence.visible(before, after) or equivalence.in_exact_arithmetic(before, after)


def _closely(original: Original, check: Check, case: Case) -> str:
    before = original.own(case)
    after = equivalence.answer(check.runner, original.call(case), time_limit=PATIENCE)
    return equivalence.visible(before, after) or _coarser(original, case, before, after)


def _reached(subject: Subject, originals: Originals, original: Original, edit: Edit) -> bool:
    """Whether any case gets to the statement that the edit lies in."""
    node = statement_of(subject.tree, edit)
    if node is None:
        return True
    place = (node.lineno, node.col_offset)
    if place not in original.reached:
        text = raising(subject.source, node)
        try:
            with mutated(subject, text, original.kernel, originals.shared) as check:
                found = _first(
                    original.kernel.compared,
                    lambda c: equivalence.visible(
                        original.own(c), equivalence.answer(check.runner, original.call(c), time_limit=PATIENCE)
                    ),
                )
                check.bench.close()
            original.reached[place] = found is not None
        except (UsageError, CannotCheckError, StopIteration):
            original.reached[place] = True
    return original.reached[place]


def _coarser(original: Original, case: Case, own: Answered, other: Answered) -> str:
    bench = original.check.bench
    reference = bench.answer(original.call(case).problem, case.id).reference
    return equivalence.in_own_arithmetic(own, other, reference)


def _asked(original: Original, check: Check, witness: str, how: str) -> Judged:
    """Ask until one question convicts."""
    asked = refused = 0
    reason = ""
    for question in original.kernel.questions:
        found = ask(check, question)
        asked += 1
        if found.status is Status.VIOLATION and not original.breaks(question):
            assert found.failure is not None
            return Judged(Outcome.CAUGHT, question.law.name, question.case.id, found.failure.diagnosis, asked)
        if found.status in (Status.REFUSED, Status.NOT_OFFERED) and not original.breaks(question):
            refused, reason = refused + 1, reason or found.reason
            if refused >= _ENOUGH:
                break
    if refused:
        return Judged(Outcome.REFUSED, case_id=witness, reason=reason, questions=asked)
    return Judged(Outcome.SURVIVED, case_id=witness, reason=how, questions=asked)
