"""What becomes of one mutant: first whether it computes anything else than its original, then whether the check notices."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter

from linverify import session
from linverify.errors import CannotCheckError, UsageError
from linverify.examination import Examination
from linverify.selftest.difference import Difference, difference
from linverify.selftest.edit import Edit, lines_changed
from linverify.selftest.originals import Original, Originals, ask, mutated
from linverify.selftest.score import MutantResult, Outcome
from linverify.selftest.subject import Subject
from linverify.selftest.widened import widened
from linverify.verdict import Status

# A mutant that refuses this many questions of those that its original answers is not asked any more.
_ENOUGH = 24
# Which outcome of several functions of one file is the mutant's.
_WORST = (Outcome.CAUGHT, Outcome.SURVIVED, Outcome.REFUSED, Outcome.EQUIVALENT)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What became of a mutant of one function."""

    outcome: Outcome
    law: str = ""
    case_id: str = ""
    reason: str = ""
    questions: int = 0
    laws: tuple[str, ...] = ()


def judge(subject: Subject, originals: Originals, edit: Edit, *, each: bool = False) -> MutantResult:
    """Judge one mutant; `each` asks on until every property has had its say."""
    start = perf_counter()
    found: list[tuple[_Judged, str]] = []
    with session.one_thread():
        for original in originals.by_name.values():
            try:
                judged = _judged(subject, originals, original, edit, each=each)
            except (UsageError, CannotCheckError) as error:
                judged = _Judged(Outcome.REFUSED, reason=str(error))
            except (
                ValueError
            ) as error:  # the check itself fails on it: no conviction, and the others are judged all the same
                judged = _Judged(Outcome.SURVIVED, reason=f"the check broke down: {error}")
            found.append((judged, original.check.operator.name))
            if judged.outcome is Outcome.CAUGHT:
                break
    worst, operator = min(found, key=lambda item: _WORST.index(item[0].outcome))
    return MutantResult(
        name=edit.name(subject.source),
        family=edit.family,
        what=edit.what,
        line=edit.line,
        diff=lines_changed(subject.source, edit.applied(subject.source)),
        outcome=worst.outcome,
        operator=operator,
        law=worst.law,
        case_id=worst.case_id,
        reason=worst.reason,
        laws=worst.laws,
        questions=sum(j.questions for j, _ in found),
        seconds=perf_counter() - start,
    )


def _judged(subject: Subject, originals: Originals, original: Original, edit: Edit, *, each: bool) -> _Judged:
    text = edit.applied(subject.source)
    with ExitStack() as stack:
        check = stack.enter_context(mutated(subject, text, original.kernel, originals.shared))
        wide = check
        if widened(text) != text:
            wide = stack.enter_context(mutated(subject, widened(text), original.kernel, originals.shared))
        found = difference(subject, originals, original, edit, check.runner, wide.runner)
        return _Judged(Outcome.EQUIVALENT) if found is None else _asked(original, check, found, each=each)


def _asked(original: Original, check: Examination, found: Difference, *, each: bool) -> _Judged:
    """Ask until one question convicts, or each property has convicted or asked all of its questions."""
    bench, before = check.bench, original.check.bench
    bench.hurried = True  # whether a hang lasts for a minute or for ever is all the same here
    bench.slowest, bench.twin = before.slowest, before.twin
    asked = refused = 0
    reason = ""
    convicted: dict[str, _Judged] = {}  # by property, the first one first
    try:
        for question in original.kernel.questions:
            if question.law.name in convicted:
                continue
            outcome = ask(check, question)
            asked += 1
            if outcome.status is Status.VIOLATION and not original.breaks(question):
                assert outcome.failure is not None
                law, case_id = question.law.name, question.case.id
                convicted[law] = _Judged(Outcome.CAUGHT, law, case_id, outcome.failure.diagnosis, asked)
                if not each:
                    break
            if outcome.status in (Status.REFUSED, Status.NOT_OFFERED) and not original.breaks(question):
                refused, reason = refused + 1, reason or outcome.reason
                if refused >= _ENOUGH:
                    break
    finally:
        before.twin, bench.twin = bench.twin, None  # one for all mutants
    if convicted:
        return replace(next(iter(convicted.values())), laws=tuple(convicted))
    if refused:
        return _Judged(Outcome.REFUSED, case_id=found.case_id, reason=reason, questions=asked)
    return _Judged(Outcome.SURVIVED, case_id=found.case_id, reason=found.how, questions=asked)
