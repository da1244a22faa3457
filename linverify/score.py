"""What the judge works on and hands out: a problem with its reference, and how a result stands; how realisations decide."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from linverify import budget
from linverify.certificate import Certificate
from linverify.emulated import Posed
from linverify.ensemble import Member, pooled
from linverify.problem import Problem
from linverify.recipe import Recipe
from linverify.reference.question import Question
from linverify.rule import GENERIC, Rule


class Unjudgeable(Exception):
    """No realisation of a correct kernel stays finite on this case: its format cannot hold the intermediate values."""


@dataclass(eq=False, slots=True)
class Answer:
    """A problem with its reference, and the realisations drawn for it so far."""

    problem: Problem
    question: Posed
    reference: dict[str, Tensor]
    members: dict[tuple[str | Recipe, int, int], list[Member]] = field(default_factory=dict)
    ungated: dict[tuple[str | Recipe, int, int], list[Member]] = field(default_factory=dict)
    variances: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    rounded: dict[str, frozenset[str]] = field(default_factory=dict)
    certificate: Certificate | None = None

    @property
    def device(self) -> torch.device:
        """Where it was computed."""
        return next(iter(self.reference.values())).device

    @property
    def recurrence(self) -> Question:
        """The question of an operator that is one recurrence.

        Raises:
            TypeError: the operator is stated by its forms.
        """
        if not isinstance(self.question, Question):
            raise TypeError(f"expected a recurrence, got the forms of {self.question.operator.name}")
        return self.question


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """How one tensor stands.

    Attributes:
        outcome: pass, reject or marginal.
        share: of the budget; the line is at 1.
        statistic: which one decided.
        error, sigma, ref: [heads, rows, columns], for the evidence.
        allowed: largest |error| / sigma that a single element may have.
        screened: True where the screen settled it.
    """

    outcome: str
    share: float
    statistic: str
    error: Tensor
    sigma: Tensor
    ref: Tensor
    allowed: float
    screened: bool = False


def settle(
    growing: Callable[[int], Iterable[Sequence[Member]]],
    once: Callable[[Sequence[Member]], tuple[float, str, Tensor, float]],
    e: Tensor,
    r: Tensor,
    further: Sequence[int] = (),
    rule: Rule = GENERIC,
) -> Score:
    """Draw realisations, recipe by recipe and seed by seed, until they decide.

    More recipes only widen the budget, so an error well inside the budget of the first ones needs no more of them. One that is
    far beyond the line by two seeds, each by itself, is rejected; whatever else is not well inside is held to all seeds', and
    to those of further ones where it is still near the line.
    """

    def score(outcome: str, seen: tuple[float, str, Tensor, float], line: float) -> Score:
        share, statistic, sigma, allowed = seen
        return Score(outcome, share / line, statistic, e, sigma, r, line * allowed)

    def whole(seed: int) -> Sequence[Member]:
        *_, drawn = growing(seed)
        return drawn

    first, second, *others = budget.seeds()
    for drawn in growing(first):
        seen = once(drawn)
        if budget.settled([seen[0]], rule) == "pass":
            return score("pass", seen, rule.line)
    sets = [drawn, whole(second)]
    far = budget.FAR * rule.line
    if seen[0] > far and (again := once(sets[1]))[0] > far:
        return score("reject", max(seen, again, key=lambda x: x[0]), rule.line)
    sets += map(whole, others)
    seen = once(pooled(sets))
    if further and rule.marginal < seen[0] <= budget.FAR * rule.together:
        seen = once(pooled([*sets, *map(whole, further)]))
    outcome = "reject" if seen[0] > rule.together else "marginal" if seen[0] > rule.marginal else "pass"
    return score(outcome, seen, rule.together)
