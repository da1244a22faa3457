"""Draw cases from a strategy, and shrink a failing one: the only place that drives Hypothesis.

Cases are drawn first and judged afterwards, so that a session knows what is coming (and can compile for it). A failing case is
shrunk by running the same draws again under Hypothesis with what was already judged remembered.
"""

import contextlib
from collections.abc import Callable
from time import perf_counter

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from linverify.case import Case


def _run(
    strategy: SearchStrategy[Case], count: int, seed: int, phases: tuple[Phase, ...], body: Callable[[Case], None]
) -> None:
    settings = hypothesis.settings(  # every one of them: a profile that the user's tests load must not change the cases
        max_examples=count,
        phases=phases,
        database=None,
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

    hypothesis.seed(seed)(settings(hypothesis.given(case=strategy)(test)))()


def draw(strategy: SearchStrategy[Case], count: int, seed: int) -> tuple[Case, ...]:
    """Draw up to `count` distinct cases; the same seed draws the same ones."""
    found: dict[str, Case] = {}

    def keep(case: Case) -> None:
        found.setdefault(case.id, case)

    _run(strategy, count, seed, (Phase.generate,), keep)
    return tuple(found.values())


class _StillFailsError(Exception):
    """Tells Hypothesis that a case fails."""


def shrink(
    strategy: SearchStrategy[Case], count: int, seed: int, first: Case, fails: Callable[[Case], bool], seconds: float
) -> Case:
    """Return the smallest failing case that Hypothesis finds within a time limit; `first` where it finds none.

    Args:
        strategy: as `first` was drawn.
        count: as `first` was drawn.
        seed: as `first` was drawn.
        first: the failing case.
        fails: whether a case fails; must give the same answer every time it is asked the same.
        seconds: after this no new case is asked.
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
        _run(strategy, count, seed, (Phase.generate, Phase.shrink), body)
    return smallest[0]
