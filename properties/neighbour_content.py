"""Neighbour content: what the other rows of a batch hold changes no bit of a row."""

import torch

from linverify.problem import Problem
from linverify.properties._problems import asked, axes_of, changed, length_of, mirrored, rows, select
from linverify.properties._results import choose, equal_bits, letters, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Keep one row, put other values into its neighbours, and compare the bits of the row."""
    problem, operator = trial.problem, trial.operator
    place = choose(trial, "one", 0, length_of(problem, operator, "B"))
    parts = [solved(trial), solved(trial, _around(trial, place))]
    index = rows([place])
    for name in asked(problem):
        axes = axes_of(operator, name)
        if not set(axes) & set(index):
            continue  # summed over the batch

        def views(found: list[Tensors], name: str = name) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = (select(f[name], axes_of(operator, name), index) for f in found)
            return first, second

        equal_bits(trial, f"{name} of a row among other neighbours", parts, views, letters(trial, name))


def _around(trial: Trial, place: int) -> Problem:
    """The problem with one row kept and all others mirrored; inputs that rows share stay as they are."""
    problem, operator = trial.problem, trial.operator
    others = mirrored(problem, operator)
    old = (*problem.tensors.values(), problem.initial_state, *problem.cotangents.values())
    new = (*others.tensors.values(), others.initial_state, *others.cotangents.values())
    pairs = {id(a): b for a, b in zip(old, new, strict=True) if a is not None}

    def keep(x: torch.Tensor, axes: tuple[str, ...]) -> torch.Tensor:
        axis = next((axes.index(a) for a in ("B", "N") if a in axes), None)
        other = pairs[id(x)]
        if axis is None or other is None:
            return x
        mixed = other.clone()
        mixed.select(axis, place).copy_(x.select(axis, place))
        return mixed

    return changed(problem, operator, keep)


PROPERTY = Property(
    name="neighbour_content",
    law="What the other rows of a batch hold changes no bit of a row.",
    check=check,
    required=False,
    claim="batch_invariant=rounding",
    space=Space(max_T=SHORT, min_B=2, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="A maximum or a scale taken over the whole batch makes a served answer depend on what others asked at that moment.",
)
