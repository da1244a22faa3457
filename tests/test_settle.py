"""How realisations decide: one seed's alone, two seeds' one by one, or those of all seeds together."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from linverify.budget import SMALL, further, measured, seeds
from linverify.dtype import FP32
from linverify.ensemble import Member, pooled
from linverify.rule import DECLARED, GENERIC
from linverify.score import settle
from linverify.statistics import Axes

ONE = torch.ones(1, 1, 1)


def member(name: str, train: Tensor, held: Tensor | None = None, *, finite: bool = True) -> Member:
    held = train if held is None else held
    return Member(name, {"o": train}, {"o": held}, {"o": held[:1]}, frozenset({"o"} if finite else ()))


@pytest.mark.parametrize(
    ("stacks", "outcome", "share", "asked"),
    [
        (((1.5, 9.9),), "pass", 1.5 / 3, 1),  # the second stack only widens the budget: it is not drawn
        (((9.9, 1.5),), "pass", 1.5 / 3, 2),
        (((99.0, 33.0), (99.0, 36.0)), "reject", 36.0 / 3, 3),
        (((9.9, 3.3), (9.9, 3.6), (9.9, 2.4), (9.9, 2.3)), "reject", 2.9 / 2.5, 3),  # not far enough for two to decide
        (((2.6, 2.6), (2.7, 2.7), (2.8, 2.8), (2.9, 2.9)), "reject", 2.75 / 2.5, 3),
        (((2.2, 2.2), (2.1, 2.1), (2.2, 2.2), (2.3, 2.3)), "marginal", 2.2 / 2.5, 3),
        (((40.0, 40.0), (1.8, 1.8), (1.7, 1.7), (1.6, 1.6)), "reject", 45.1 / 4 / 2.5, 4),
        (((3.1, 3.1), (1.8, 1.8), (1.7, 1.7), (1.6, 1.6)), "pass", 2.05 / 2.5, 3),
    ],
)
def test_realisations_are_drawn_until_they_decide(
    stacks: Sequence[Sequence[float]], outcome: str, share: float, asked: int
) -> None:
    left, ratios = iter(stacks), []

    def growing(seed: int) -> Iterator[list[Member]]:
        assert seed in seeds()
        members: list[Member] = []
        for n, ratio in enumerate(next(left)):
            members = [*members, member(str(n), torch.full((2, 1), ratio))]
            yield members

    def once(members: Sequence[Member]) -> tuple[float, str, Tensor, float]:
        """The mean of what the last member holds stands for its ratio."""
        ratios.append(float(members[-1].train["o"].mean()))
        return ratios[-1], "rms", ONE, 6.0

    error = torch.zeros(1, 1, 1)
    score = settle(growing, once, error, error)
    assert (score.outcome, score.share, len(ratios)) == (outcome, pytest.approx(share), asked)
    assert not score.screened
    assert score.allowed == 6.0 * (2.5 if abs(score.share - ratios[-1] / 2.5) < 1e-6 else 3.0)


@pytest.mark.parametrize(
    ("elements", "problem", "outcome", "sets"),
    [
        (SMALL, 16 * SMALL, "pass", 12),
        (SMALL + 1, 16 * SMALL, "reject", 4),
        (SMALL, 16 * SMALL + 1, "reject", 4),  # a set realises the whole problem
    ],
)
def test_a_near_thing_of_few_elements_is_held_to_more_realisations(
    elements: int, problem: int, outcome: str, sets: int
) -> None:
    asked: list[int] = []

    def growing(seed: int) -> Iterator[list[Member]]:
        asked.append(seed)
        yield [member("", torch.full((2, 1), 2.8 if seed in seeds() else 1.0))]

    def once(members: Sequence[Member]) -> tuple[float, str, Tensor, float]:
        return float(members[-1].train["o"].mean()), "rms", ONE, 6.0

    error = torch.zeros(1, 1, elements)
    assert settle(growing, once, error, error, further(elements, problem)).outcome == outcome
    assert len(asked) == len(set(asked)) == sets


def test_all_seeds_together_are_as_many_realisations_as_a_declared_recipe_has() -> None:
    assert len(seeds()) * GENERIC.train == DECLARED.train
    assert GENERIC.together == DECLARED.line
    assert pytest.approx(DECLARED.near) == GENERIC.marginal == DECLARED.marginal


def test_sets_are_joined_member_by_member() -> None:
    first, second = torch.arange(4.0).reshape(2, 2), torch.arange(4.0, 8.0).reshape(2, 2)
    lost = first * torch.nan
    sets = [
        [member("a", first), member("b", first), member("c", first)],
        [member("c", lost, finite=False), member("a", second)],
    ]
    a, c = pooled(sets)
    assert (a.name, c.name) == ("a", "c")  # the second set has no b
    assert a.finite == c.finite == {"o"}
    assert torch.equal(a.train["o"], torch.cat([first, second]))
    assert a.held["o"].shape[0] == 4
    assert a.nearest["o"].shape[0] == 2
    assert torch.equal(c.train["o"], torch.cat([first, first]))  # what is finite stands for what is not
    (gone,) = pooled([[member("c", lost, finite=False)]] * 2)
    assert not gone.finite


def test_together_they_tell_a_scale_better_and_the_line_is_nearer() -> None:
    """An element between both lines, 15 and 18 times its scale, is let pass by one set where that happened to be wide."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> Tensor:
        return torch.randn(n, 1, 30, 20, generator=generator, dtype=torch.float64)

    def once(members: Sequence[Member]) -> tuple[float, str, Tensor, float]:
        return measured(error, torch.zeros(1, 30, 20), members, "o", Axes("NTV"), ONE * 1e-12, FP32, 0.0)

    def found(times: float) -> str:
        error[0, 3, 4] = times * float(together[0, 3, 4])
        return settle(lambda seed: iter([sets[order.index(seed)]]), once, error, error * 0, more).outcome

    more = further(1, 1)
    order = (*seeds(), *more)
    sets = [[member(str(n), drawn(2), drawn(1)) for n in range(8)] for _ in order]
    error = drawn(1)[0]
    (_, _, one, _), (_, _, together, _) = once(sets[0]), once(pooled(sets))
    assert float(together.std()) < 0.7 * float(one.std())
    assert [found(times) for times in (1.0, 12.0, 13.5, 15.5, 30.0)] == ["pass", "pass", "marginal", "reject", "reject"]
