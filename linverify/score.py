"""What the judge works on and hands out: a problem with its reference, and how a result stands; how realisations decide."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from linverify import budget
from linverify.certificate import Certificate
from linverify.emulated import Posed
from linverify.ensemble import Member
from linverify.problem import Problem
from linverify.recipe import Recipe
from linverify.reference.question import Question
from linverify.rule import GENERIC, Rule

_Drawn = TypeVar("_Drawn")


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
    growing: Callable[[int], Iterable[_Drawn]],
    once: Callable[[_Drawn], tuple[float, str, Tensor, float]],
    e: Tensor,
    r: Tensor,
    rule: Rule = GENERIC,
) -> Score:
    """Draw realisations, recipe by recipe and seed by seed, until they decide.

    More recipes only widen the budget, so an error well inside the budget of the first ones needs no more of them.
    """
    ratios: list[float] = []
    for seed in budget.seeds():
        for drawn in growing(seed):
            worst, which, sigma, allowed = once(drawn)
            if budget.settled([worst], rule) == "pass":
                break
        ratios.append(worst)
        outcome = budget.settled(ratios, rule)
        if outcome != "more":
            break
    middle = sorted(ratios)[len(ratios) // 2] if len(ratios) != 2 else max(ratios)
    return Score(outcome, middle / rule.line, which, e, sigma, r, rule.line * allowed)
