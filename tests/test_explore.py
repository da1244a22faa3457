"""Drawing and shrinking cases: what Hypothesis is driven to do."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from linverify import registry
from linverify.case import Case
from linverify.explore import climb, draw, shrink
from linverify.profile import profile
from linverify.property import Space
from linverify.strategies import strata

CASES = st.builds(
    Case,
    st.just("gla"),
    B=st.integers(1, 3),
    T=st.integers(1, 70),
    H=st.integers(1, 3),
    gate=st.sampled_from(["none", "mild", "strong"]),
    seed=st.integers(0, 9999),
)
COUNT, SEED, LONG = 40, 5, 30.0


def test_the_same_seed_draws_the_same_cases() -> None:
    first = draw(CASES, COUNT, SEED)
    assert first == draw(CASES, COUNT, SEED)
    assert first != draw(CASES, COUNT, SEED + 1)
    assert 20 < len(first) <= COUNT
    assert len({c.id for c in first}) == len(first)


def test_cases_are_distinct_and_may_be_few() -> None:
    assert draw(st.just(Case("gla")), COUNT, SEED) == (Case("gla"),)
    assert len(draw(st.builds(Case, st.just("gla"), T=st.integers(1, 3)), COUNT, SEED)) == 3


def test_no_literal_of_the_callers_source_files_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[providers.Constants] = []

    def literals() -> providers.Constants:
        sought.append(providers.Constants())
        return sought[-1]

    monkeypatch.setattr(providers, "_get_local_constants", literals)
    draw(CASES, COUNT, SEED)
    shrink(CASES, COUNT, SEED, Case("gla", T=70, H=3), lambda case: case.T > 3, LONG)
    assert not sought
    settings(max_examples=200, database=None, derandomize=True)(given(CASES)(lambda case: None))()
    assert sought  # for anybody else's tests Hypothesis looks, as ever


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("start", range(20))
def test_few_cases_are_not_only_the_simplest(count: int, start: int) -> None:
    drawn = draw(CASES, count, start)
    assert drawn[-1].T > 16  # more than a block of tokens, so that something is carried from one to the next
    assert len(drawn) == count
    assert drawn[0] != Case("gla", T=1)
    shrunk = shrink(CASES, count, start, drawn[-1], lambda c: c == drawn[-1], LONG)
    assert shrunk == drawn[-1]


def test_a_case_drawn_alone_shrinks_too() -> None:
    for start in range(20):
        drawn = draw(CASES, 1, start)[0]
        smallest = shrink(CASES, 1, start, drawn, lambda c: c.T > 16, LONG)
        assert smallest == Case("gla", B=1, T=17, H=1, gate="none", seed=0)


def test_where_no_case_is_long_the_longest_is_drawn() -> None:
    short = st.builds(Case, st.just("gla"), T=st.integers(1, 9), seed=st.integers(0, 9999))
    for start in range(20):
        assert draw(short, 1, start)[0].T > 1
    assert draw(st.builds(Case, st.just("gla"), T=st.integers(1, 2)), 1, SEED) == (Case("gla", T=2),)


def failing(fails: object) -> Case:
    """A drawn case that fails, as a session meets it."""
    return next(c for c in draw(CASES, COUNT, SEED) if fails(c))  # type: ignore[operator]


def test_shrinking_finds_the_smallest_failing_case() -> None:
    def fails(case: Case) -> bool:
        return case.T >= 33 and case.gate != "none"

    first = failing(fails)
    smallest = shrink(CASES, COUNT, SEED, first, fails, LONG)
    assert smallest != first
    assert smallest == Case("gla", B=1, T=33, H=1, gate="mild", seed=0)
    assert smallest == shrink(CASES, COUNT, SEED, first, fails, LONG)


def test_shrinking_keeps_a_coincidence_of_two_sizes() -> None:
    def fails(case: Case) -> bool:
        return case.B > 1 and case.T % 16 == 1 and case.T > 16

    smallest = shrink(CASES, 3 * COUNT, SEED, Case("gla", B=3, T=65, H=2), fails, LONG)
    assert (smallest.B, smallest.T % 16, smallest.H) == (2, 1, 1)


def test_every_case_is_asked_once() -> None:
    asked: list[str] = []

    def fails(case: Case) -> bool:
        asked.append(case.id)
        return case.T > 20

    shrink(CASES, COUNT, SEED, failing(lambda c: c.T > 20), fails, LONG)
    assert len(asked) == len(set(asked))


def test_the_first_case_comes_back_where_nothing_smaller_fails() -> None:
    # The failure depends on a case that Hypothesis does not draw again.
    elsewhere = Case("gla", B=9, T=900)
    assert shrink(CASES, COUNT, SEED, elsewhere, lambda c: c == elsewhere, LONG) == elsewhere
    assert shrink(CASES, COUNT, SEED, elsewhere, lambda _: False, LONG) == elsewhere
    only = Case("gla", T=5)
    assert shrink(st.just(only), 1, SEED, only, lambda _: True, LONG) == only


def test_shrinking_stops_in_time() -> None:
    asked = 0

    def fails(case: Case) -> bool:
        nonlocal asked
        asked += 1
        time.sleep(0.05)
        return case.T >= 10

    start = time.perf_counter()
    first = failing(lambda c: c.T >= 10)
    smallest = shrink(CASES, COUNT, SEED, first, fails, 0.3)
    assert time.perf_counter() - start < 5
    assert asked < 12
    assert smallest.T >= 10  # what comes back fails, however little time there was


def test_no_time_at_all_gives_the_first_case() -> None:
    def fails(case: Case) -> bool:
        return case.T >= 10

    first = failing(fails)
    asked: list[Case] = []

    def counted(case: Case) -> bool:
        asked.append(case)
        return fails(case)

    assert shrink(CASES, COUNT, SEED, first, counted, 0.0) == first
    assert asked == [first]


def test_an_error_in_the_question_is_not_swallowed() -> None:
    def fails(_: Case) -> bool:
        raise RuntimeError("the engine is broken")

    with pytest.raises(RuntimeError, match="the engine is broken"):
        shrink(CASES, COUNT, SEED, Case("gla"), fails, LONG)


@pytest.mark.parametrize("name", sorted(registry.operators()))
def test_the_cases_of_a_session_shrink_to_the_simplest(name: str) -> None:
    everything = frozenset({"scale", "initial_state", "final_state", "packed", "gradients", "groups"})
    first, *_ = strata(
        registry.operator(name),
        everything,
        Space(cotangents=(), packed=None),
        profile=profile("standard"),
        device="cpu",
        dtypes=("fp32", "bf16"),
        claims={},
    )
    case = next(c for c in draw(first.strategy, 20, SEED) if c.T > 16)
    smallest = shrink(first.strategy, 20, SEED, case, lambda c: c.T > 16, LONG)
    assert (smallest.B, smallest.T, smallest.H) == (1, 17, 1)
    assert (smallest.regime, smallest.gate, smallest.state, smallest.lengths) == ("normal", "none", "absent", ())
    assert smallest.cotangent == "none"


def test_a_climb_finds_higher_cases_than_it_was_given() -> None:
    def case(T: int, seed: int) -> Case:
        return Case("gla", T=T, seed=seed)

    asked: list[Case] = []

    def height(c: Case) -> float | None:
        asked.append(c)
        return None if c.T == 3 else c.T + (c.seed % 97) / 97

    found = climb(st.builds(case, st.integers(1, 500), st.integers(0, 9)), 1, height, 1.0)
    assert len({c.id for c in asked}) == len(asked)
    assert {c.id for c in found} == {c.id for c in asked if c.T != 3}
    top = max(c.T + (c.seed % 97) / 97 for c in found)
    assert found[-1].T + (found[-1].seed % 97) / 97 == top
    assert top > 400.9  # the steps around the best change its tensors, which is where the fraction comes from
    assert climb(st.just(Case("gla", T=3)), 1, height, 0.1) == ()


@pytest.mark.parametrize("after", [0, 7, 60])
def test_a_climb_ends_when_it_has_enough(after: int) -> None:
    """At once: it neither goes on drawing cases that it does not ask nor steps on the spot until its own time is up."""
    asked: list[Case] = []

    def height(c: Case) -> float:
        asked.append(c)
        return float(c.T)

    start = time.perf_counter()
    found = climb(CASES, 1, height, 20.0, lambda: len(asked) >= after)
    assert time.perf_counter() - start < 8
    assert len(asked) == len(found) == after
    assert not after or max(c.T for c in asked) == found[-1].T
