"""Causality of values: what comes later does not change what was.

Law M4 for queries, keys, values, low-rank terms. At fixed sizes a kernel does the same operations on the same past,
whatever the future holds, so the past must keep its bits.
"""

from collections.abc import Callable, Sequence

import torch

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._problems import axes_of, length_of, with_tail
from linverify.properties._results import choose, equal_bits, letters, solved
from linverify.properties._spaces import SHORT
from linverify.property import Property, Space, Tensors, Trial


def other_future(problem: Problem, operator: Operator, start: int) -> Problem:
    """Change all operands from token `start` on: features reversed, a quarter smaller; values negated, half as large again.

    Key norms do not grow, so step operators still contract. Values do, so that the largest of all changes wherever it was. The
    factors are no powers of two: a stabiliser that sees the future's largest element would change exponents only, which leaves
    no trace.
    """

    def reverse(x: torch.Tensor) -> torch.Tensor:
        return 0.75 * x.flip(-1)

    def negate(x: torch.Tensor) -> torch.Tensor:
        return -1.5 * x

    change: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    change.update({i.name: reverse for i in operator.of_kind("query", "key", "low_rank_a", "low_rank_b")})
    change.update({i.name: negate for i in operator.of_kind("value")})
    return with_tail(problem, operator, start, change)


def check(trial: Trial) -> None:
    """Change the future from a random token on and compare the bits of the past."""
    start = choose(trial, "start", 1, length_of(trial.problem, trial.operator, "T"))
    time = axes_of(trial.operator, "o").index("T")
    parts = [solved(trial), solved(trial, other_future(trial.problem, trial.operator, start))]

    def views(found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = (part["o"].narrow(time, 0, start) for part in found)
        return first, second

    equal_bits(trial, f"o before token {start}, with two futures", parts, views, letters(trial, "o"))


PROPERTY = Property(
    name="causality_values",
    law="Changing queries, keys or values after a token leaves every output up to that token the same, bit by bit.",
    check=check,
    applies=lambda operator: "M4" in operator.identities,
    space=Space(max_T=SHORT, min_T=2),
    why="A mask that is written after the scores were used, or that is off by one, lets a model see the token it is to "
    "predict: the loss gets better and generation gets worse.",
    against="a mask that lets later tokens in",
)
