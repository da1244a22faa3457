"""A self-test from beginning to end: subjects prepared, mutants judged by one process or several, in the order of the source.

What is judged is handed on at once, so that an interrupted run has a whole record of what it did, and another can go on there.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from time import perf_counter

from linverify.plan import Plan
from linverify.selftest.edit import Edit
from linverify.selftest.judging import judge
from linverify.selftest.mutants import mutants, sample
from linverify.selftest.originals import Originals
from linverify.selftest.score import MutantResult, TargetScore
from linverify.selftest.subject import Subject, digest_of, prepare, text_of

_LOOK_AGAIN = 1.0  # seconds between two looks at the clock

Told = Callable[[TargetScore, MutantResult | None], None]


@dataclass(frozen=True, slots=True)
class Order:
    """One target to be mutated.

    Attributes:
        plan: as of a check of it.
        operators: which of its functions; () for all.
        mutants: at most so many, drawn by the plan's seed; None for all.
        each: ask every property about every mutant, not until the first one catches it.
    """

    plan: Plan
    operators: tuple[str, ...] = ()
    mutants: int | None = None
    each: bool = False


def run(
    order: Order, *, workers: int, expired: Callable[[], bool], known: Mapping[str, TargetScore], told: Told
) -> TargetScore:
    """Judge the mutants of one target; `told` hears the score so far after each. Where the time is over, none is judged.

    Raises:
        UsageError: the plan cannot be understood, or the target has no source to mutate.
        CannotCheckError: the target cannot be imported, or nothing can be asked.
    """
    if expired():
        return _not_begun(order, known)
    start = perf_counter()
    subject = prepare(order.plan, order.operators)
    edits = _edits(order, subject.source, subject.functions)
    names = [e.name(subject.source) for e in edits]
    before = known.get(subject.digest)
    found = {m.name: m for m in before.mutants} if before is not None else {}
    excluded: set[str] = set(before.excluded if before is not None else ())
    spent = before.seconds if before is not None else 0.0

    def so_far() -> TargetScore:
        judged = tuple(found[n] for n in names if n in found)
        return TargetScore(
            order.plan.target,
            tuple(dict.fromkeys(k.claim.operator for k in subject.kernels)),
            str(subject.path),
            subject.digest,
            judged,
            len(names) - len(judged),
            tuple(sorted(excluded)),
            spent + perf_counter() - start,
        )

    told(so_far(), None)
    left = [e for e, n in zip(edits, names, strict=True) if n not in found]
    with _judging(subject, workers, each=order.each) as judged:
        for result, broken in judged(left, expired):
            found[result.name] = result
            excluded |= set(broken)
            told(so_far(), result)
    return so_far()


def _edits(order: Order, source: str, functions: Sequence[str] = ()) -> tuple[Edit, ...]:
    edits = mutants(source, functions)
    return edits if order.mutants is None else sample(edits, order.mutants, order.plan.seed)


def _not_begun(order: Order, known: Mapping[str, TargetScore]) -> TargetScore:
    """What an earlier run knows of a target for which there is no time; drawing its questions alone would take longer."""
    path, source = text_of(order.plan)
    before = known.get(digest_of(source))
    if before is not None:
        return before
    return TargetScore(order.plan.target, order.operators, str(path), digest_of(source), (), len(_edits(order, source)))


_Judged = Iterator[tuple[MutantResult, tuple[str, ...]]]
_Judging = Callable[[Sequence[Edit], Callable[[], bool]], _Judged]


@contextmanager
def _judging(subject: Subject, workers: int, *, each: bool) -> Iterator[_Judging]:
    """Within the block: a function that judges mutants, in this process or in several."""
    if workers > 1:
        yield lambda edits, expired: _among(subject, workers, edits, expired, each=each)
        return
    originals = Originals(subject)
    try:
        yield lambda edits, expired: _alone(subject, originals, edits, expired, each=each)
    finally:
        originals.close()


def _alone(
    subject: Subject, originals: Originals, edits: Sequence[Edit], expired: Callable[[], bool], *, each: bool
) -> _Judged:
    for edit in edits:
        if expired():
            return
        result = judge(subject, originals, edit, each=each)
        yield result, _broken(originals)


def _among(
    subject: Subject, workers: int, edits: Sequence[Edit], expired: Callable[[], bool], *, each: bool
) -> _Judged:
    # Forked: what was drawn and imported is there already. No worker process of a target is running at this point.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(subject,))
    left, pending = iter(edits), set[Future[tuple[MutantResult, tuple[str, ...]]]]()
    try:
        while not expired():
            # No more than can begin at once: what waits in the pool's own queue is judged after the time is over.
            pending |= {pool.submit(_judge_here, edit, each) for edit in islice(left, workers - len(pending))}
            if not pending:
                return
            done, pending = wait(pending, timeout=_LOOK_AGAIN, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
        for future in wait(pending).done:
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Here:
    """What one process of several works on."""

    subject: Subject | None = None
    originals: Originals | None = None


def _begin(subject: Subject) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal asks everybody; the first process answers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _Here.subject = replace(subject)
    _Here.originals = Originals(subject)


def _judge_here(edit: Edit, each: bool) -> tuple[MutantResult, tuple[str, ...]]:
    assert _Here.subject is not None
    assert _Here.originals is not None
    return judge(_Here.subject, _Here.originals, edit, each=each), _broken(_Here.originals)


def _broken(originals: Originals) -> tuple[str, ...]:
    return tuple(text for o in originals.by_name.values() for text, breaks in o.excluded.items() if breaks)
