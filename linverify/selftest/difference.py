"""Where a mutant differs from its original: the cases asked, in float64 first, until one tells them apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from linverify.case import Case
from linverify.dtype import parse
from linverify.errors import CannotCheckError, UsageError
from linverify.runner import Runner
from linverify.selftest import equivalence
from linverify.selftest.edit import Edit
from linverify.selftest.equivalence import Answered
from linverify.selftest.originals import PATIENCE, Original, Originals, mutated
from linverify.selftest.reach import raising, statement_of
from linverify.selftest.subject import Subject

# Most mutants differ on one of the first cases; whether the others' statement is reached at all is asked then.
_SOON = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """A case on which two kernels differ, and how."""

    case_id: str
    how: str


def difference(
    subject: Subject, originals: Originals, original: Original, edit: Edit, own: Runner, wide: Runner
) -> Difference | None:
    """Return where a mutant differs; None where it is equivalent, as far as the cases tell.

    `own` runs the mutant, `wide` the mutant in float64.
    """
    cases = original.kernel.compared
    exact = [equivalence.in_float64(c) for c in cases if equivalence.can_widen(c)]

    def exactly(case: Case) -> str:
        before, after = original.exact(case), _answer(original, wide, case)
        return equivalence.visible(before, after) or equivalence.in_exact_arithmetic(before, after)

    found = _first(exact[:_SOON], exactly)
    if found is not None or not _reached(subject, originals, original, edit):
        return found
    return _first(exact[_SOON:], exactly) or _less_accurate(original, own, cases)


def _less_accurate(original: Original, own: Runner, cases: Sequence[Case]) -> Difference | None:
    growths: list[tuple[float, Case]] = []
    for case in cases:
        before, after = original.own(case), _answer(original, own, case)
        if how := equivalence.visible(before, after) or equivalence.overflows(before, after):
            return Difference(case.id, how)
        reference = original.check.bench.answer(original.call(case).problem, case.id).reference
        growth = equivalence.coarsened(before, after, reference, parse(case.dtype))
        growths += [] if growth is None else [(growth, case)]
    if not equivalence.coarser([g for g, _ in growths]):
        return None
    growth, case = max(growths, key=lambda item: item[0])
    count = sum(g > 1.0 for g, _ in growths)
    return Difference(
        case.id, f"less accurate in {count} of {len(growths)} cases, by up to {growth:.2g} times what is usual"
    )


def _reached(subject: Subject, originals: Originals, original: Original, edit: Edit) -> bool:
    """Whether any case gets to the statement that the edit lies in."""
    node = statement_of(subject.tree, edit)
    if node is None:
        return True
    place = (node.lineno, node.col_offset)
    if place not in original.reached:
        try:
            with mutated(subject, raising(subject.source, node), original.kernel, originals.shared) as check:
                found = _first(
                    original.kernel.compared,
                    lambda c: equivalence.visible(original.own(c), _answer(original, check.runner, c)),
                )
                original.reached[place] = found is not None
        except (UsageError, CannotCheckError):  # reached as soon as it is imported
            original.reached[place] = True
    return original.reached[place]


def _first(cases: Sequence[Case], differs: Callable[[Case], str]) -> Difference | None:
    return next((Difference(case.id, how) for case in cases if (how := differs(case))), None)


def _answer(original: Original, runner: Runner, case: Case) -> Answered:
    return equivalence.answer(runner, original.call(case), time_limit=PATIENCE)
