"""Draw cases from a strategy, and shrink a failing one: the only place that drives Hypothesis.

Cases are drawn first and judged afterwards, so that a session knows what is coming (and can compile for it). A failing case is
shrunk by running the same draws again under Hypothesis with what was already judged remembered.
"""

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, wraps
from time import perf_counter
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.database import ExampleDatabase
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.strategies import SearchStrategy

from linverify.case import Case

# Whether the draws of this thread are ours.
_OURS: ContextVar[bool] = ContextVar("_OURS", default=False)


@cache
def _without_literals() -> None:
    """Have Hypothesis leave its constants out of our draws; those of anybody else's tests keep them.

    It now and then draws a literal that it found in the source files of whoever calls it (and keeps lists of them in the folder
    that it is called from). So the cases of a seed would be others after a change to any of those files, or beside another
    user's. There is no setting for it.
    """
    right = HypothesisProvider._maybe_draw_constant

    @wraps(right)
    def none_of_ours(self: HypothesisProvider, *args: Any, **kwargs: Any) -> Any:
        return None if _OURS.get() else right(self, *args, **kwargs)

    HypothesisProvider._maybe_draw_constant = none_of_ours  # type: ignore[method-assign]  # Hypothesis offers no other way


def _run(
    strategy: SearchStrategy[Case],
    count: int,
    seed: int,
    phases: tuple[Phase, ...],
    body: Callable[[Case], None],
    examples: ExampleDatabase | None = None,
) -> None:
    settings = hypothesis.settings(  # every one of them: a profile that the user's tests load must not change the cases
        max_examples=count,
        phases=phases,
        database=examples,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=hypothesis.Verbosity.quiet,
        backend="hypothesis",
    )

    def test(case: Case) -> None:
        body(case)

    # in this order: a seed forgets the database
    asked = settings(hypothesis.seed(seed)(hypothesis.given(case=strategy)(test)))
    _without_literals()
    before = _OURS.set(True)
    try:
        asked()
    finally:
        _OURS.reset(before)


# Of so few cases none is spent on the simplest one, with which Hypothesis begins: at one token most laws say nothing. And one
# of them is sought that is worth asking.
_FEW = 3
# Examples made beyond those asked for, in search of it; the second number where the first finds none. From ten examples on
# Hypothesis makes other ones, so that shrinking, which may make all of them, would not come by the same.
_SPARE = (4, 6)
# Tokens of the smallest block that tensor cores multiply: what has no more of them has no state that a second block reads.
_BLOCK = 16


def draw(strategy: SearchStrategy[Case], count: int, seed: int) -> tuple[Case, ...]:
    """Draw up to `count` distinct cases; the same seed draws the same ones.

    The first of many is the simplest: where sizes are free, a single token without a gate. Up to three are drawn without it;
    the last of them is an example with more tokens than the smallest block, or the longest where none has as many; of those the
    first that asks for most: gradients, and the final state.
    """
    found: dict[str, Case] = {}

    def keep(case: Case) -> None:
        found.setdefault(case.id, case)

    if count > _FEW:
        _run(strategy, count, seed, (Phase.generate,), keep)
        return tuple(found.values())
    cases: tuple[Case, ...] = ()
    for spare in _SPARE:
        _run(strategy, count + spare, seed, (Phase.generate,), keep)  # the second time the same ones, and more
        cases = tuple(found.values())
        if len(cases) > count and cases[0].T <= _BLOCK:
            cases = cases[1:]
        if len(found) < count + spare or any(c.T > _BLOCK for c in cases[count - 1 :]):
            break
    return (*cases[: count - 1], *sorted(cases[count - 1 :], key=_asked, reverse=True)[:1])


def _asked(case: Case) -> tuple[int, int]:
    """How much a case asks for, as far as that is nearly nothing in the simplest one."""
    return min(case.T, _BLOCK + 1), (case.cotangent != "none") + case.final_state


class _StillFailsError(Exception):
    """Tells Hypothesis that a case fails."""


def shrink(
    strategy: SearchStrategy[Case],
    count: int,
    seed: int,
    first: Case,
    fails: Callable[[Case], bool],
    seconds: float,
    examples: ExampleDatabase | None = None,
) -> Case:
    """Return the smallest failing case that Hypothesis finds within a time limit; `first` where it finds none.

    Args:
        strategy: as `first` was drawn.
        count: as `first` was drawn.
        seed: as `first` was drawn.
        first: the failing case.
        fails: whether a case fails; must give the same answer every time it is asked the same.
        seconds: after this no new case is asked.
        examples: that failed before, tried first; what is found here is added.
    """
    known: dict[str, bool] = {}
    smallest = [first]
    start = perf_counter()

    def body(case: Case) -> None:
        if case.id not in known:
            late = perf_counter() - start > seconds and case.id != first.id
            known[case.id] = not late and fails(case)
        if known[case.id]:
            smallest[0] = case  # Hypothesis runs its smallest example last
            raise _StillFailsError

    with contextlib.suppress(_StillFailsError):
        reuse = () if examples is None else (Phase.reuse,)
        asked = count if count > _FEW else count + max(_SPARE)
        _run(strategy, asked, seed, (*reuse, Phase.generate, Phase.shrink), body, examples)
    return smallest[0]


class _EnoughError(Exception):
    """Ends a search; Hypothesis has no other way to stop."""


def climb(
    strategy: SearchStrategy[Case],
    seed: int,
    height: Callable[[Case], float | None],
    seconds: float,
    enough: Callable[[], bool] = lambda: False,
) -> tuple[Case, ...]:
    """Cases in the order asked, of a search for large heights: Hypothesis with `target`, then steps around the best.

    Args:
        strategy: draws cases.
        seed: same seed, same search, as far as time allows.
        height: of a case; None where it has none.
        seconds: after this no new case is asked.
        enough: whether to stop before that; asked before each case.

    Returns:
        The highest case last; () where no case has a height.
    """
    known: dict[str, float | None] = {}
    by_id: dict[str, Case] = {}
    start: list[float] = []  # the first case asked

    def asked(case: Case, until: float) -> float | None:
        start.extend([] if start else [perf_counter()])
        # known or not: Hypothesis asks once more for the case that ended it, and must see the same
        if perf_counter() - start[0] >= until or enough():
            raise _EnoughError
        if case.id not in known:
            known[case.id], by_id[case.id] = height(case), case
        return known[case.id]

    def body(case: Case) -> None:
        found = asked(case, seconds / 2)
        if found is not None:
            hypothesis.target(min(found, _HIGHEST))

    with contextlib.suppress(_EnoughError):
        _run(strategy, 10 + int(10 * seconds), seed, (Phase.generate, Phase.target), body)
    heights = {name: h for name, h in known.items() if h is not None}
    if not heights:
        return ()
    best = max(heights, key=heights.__getitem__)
    with contextlib.suppress(_EnoughError):
        while True:
            for near in _around(by_id[best], len(known)):
                found = asked(near, seconds)
                if found is not None and found > heights[best]:
                    best, heights[near.id] = near.id, found
    return tuple(by_id[name] for name in (*(n for n, h in known.items() if h is not None and n != best), best))


# What a search may aim at: beyond the line a case is broken, however far.
_HIGHEST = 1000.0


def _around(case: Case, salt: int) -> tuple[Case, ...]:
    """Neighbours of a case: other tensors in the same region, which is where a share's largest values are a matter of luck."""
    return tuple(case.with_(seed=(case.seed + 7919 * (salt + i) + 1) % 10000) for i in range(4))
