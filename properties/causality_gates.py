"""Causality of gates: later decays and write strengths do not change what was.

Law M4 for gates. A chunkwise form may measure all decays of a chunk from its end or its middle, so the past may round
differently; it must stay within the budget.
"""

from collections.abc import Callable, Sequence

import torch

from linverify.operator import Input, Operator
from linverify.problem import Problem
from linverify.properties._problems import axes_of, length_of, with_tail
from linverify.properties._results import choose, equal_within_budget, letters, solved
from linverify.properties._spaces import SHORT
from linverify.property import Property, Space, Tensors, Trial


def other_future(problem: Problem, operator: Operator, start: int) -> Problem:
    """Change all gates from token `start` on: log gates to another negative number, all others to half."""
    change: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    change.update({i.name: lambda g: g / 2 - 0.25 for i in operator.of_kind("log_gate")})
    change.update({i.name: lambda x: x / 2 for i in _others(operator)})
    return with_tail(problem, operator, start, change)


def _others(operator: Operator) -> list[Input]:
    """Strengths, step sizes, and what an operator calls a parameter though every token has its own (mLSTM's i and f)."""
    return [*operator.of_kind("strength", "step_size"), *(i for i in operator.of_kind("parameter") if "T" in i.axes)]


def check(trial: Trial) -> None:
    """Change the future gates from a random token on and compare the past."""
    start = choose(trial, "start", 1, length_of(trial.problem, trial.operator, "T"))
    time = axes_of(trial.operator, "o").index("T")
    parts = [solved(trial), solved(trial, other_future(trial.problem, trial.operator, start))]

    def views(found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = (part["o"].narrow(time, 0, start) for part in found)
        return first, second

    equal_within_budget(
        trial, f"o before token {start}, with two futures of the gates", parts, views, letters(trial, "o")
    )


PROPERTY = Property(
    name="causality_gates",
    law="Changing gates or write strengths after a token leaves every output up to that token the same, up to rounding.",
    check=check,
    applies=lambda operator: "M4" in operator.identities and bool([*operator.of_kind("log_gate"), *_others(operator)]),
    space=Space(max_T=SHORT, min_T=2),
    why="A gate read one token too late, or an exponential that overflows for a decay that is masked anyway, couples "
    "the past to the future.",
    against="gates of later tokens read",
)
