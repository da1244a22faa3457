"""Linearity: the output is linear in the values and the initial state together.

Law M1. The values are split so that every element goes to one part or the other and zero stands in its place: the
parts then add up to the whole exactly, in any number format.
"""

from collections.abc import Sequence
from functools import partial

import torch

from linverify.problem import Problem
from linverify.properties._problems import asked, linear_part
from linverify.properties._results import equal_within_budget, letters, solved
from linverify.properties._spaces import SHORT
from linverify.property import Property, Space, Tensors, Trial


def split(trial: Trial, problem: Problem) -> tuple[Problem, Problem]:
    """Two problems whose values and initial states have disjoint elements and add up to the problem's own."""
    name = trial.operator.value_name
    value, state = problem.tensors[name], problem.initial_state
    own = torch.rand(value.shape, generator=trial.generator("values")) < 0.5
    first = problem.with_tensors(**{name: value * own})
    second = problem.with_tensors(**{name: value * ~own})
    if state is None:
        return first, second
    kept = torch.rand(state.shape, generator=trial.generator("state")) < 0.5
    return first.with_(initial_state=state * kept), second.with_(initial_state=state * ~kept)


def views(name: str, found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of the whole and the sum of the parts' results."""
    whole, first, second = (part[name] for part in found)
    return whole, first + second


def check(trial: Trial) -> None:
    """Compare the whole with the sum of its parts."""
    whole = linear_part(trial.problem, trial.operator)
    parts = [solved(trial, whole), *(solved(trial, part) for part in split(trial, whole))]
    for name in asked(whole):
        what = f"{name} of a sum of values and the sum of both {name}"
        equal_within_budget(trial, what, parts, partial(views, name), letters(trial, name))


PROPERTY = Property(
    name="linearity",
    law="The output and the final state are linear in the values and the initial state together.",
    check=check,
    applies=lambda operator: "M1" in operator.identities,
    space=Space(max_T=SHORT, regimes=("normal", "unit", "positive", "collinear")),
    why="Values clamped, normalised or quantised by their largest element, and states cut off to a range, break it at "
    "once.",
    against="what is not linear in the values, such as clamping",
)
