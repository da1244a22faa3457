"""Batch invariance: a row, or a packed sequence, gives the same bits alone as among others."""

from collections.abc import Sequence

import torch

from linverify.properties._problems import (
    asked,
    axes_of,
    bounds,
    length_of,
    packed_index,
    rows,
    select,
    sequence,
    taken,
)
from linverify.properties._results import choose, equal_bits, letters, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Compare the bits of one row, or one packed sequence, with those it gives alone."""
    problem, operator = trial.problem, trial.operator
    if problem.lengths:
        filled = [n for n, (start, stop) in enumerate(bounds(problem)) if stop > start]
        place = filled[choose(trial, "one", 0, len(filled))]
        index, one = packed_index(problem, [place]), sequence(problem, operator, place)
    else:
        place = choose(trial, "one", 0, length_of(problem, operator, "B"))
        index, one = rows([place]), taken(problem, operator, rows([place]))
    parts = [solved(trial), solved(trial, one)]
    for name in asked(problem):
        axes = axes_of(operator, name)
        if not set(axes) & set(index):
            continue

        def views(found: Sequence[Tensors], name: str = name) -> tuple[torch.Tensor, torch.Tensor]:
            return select(found[0][name], axes_of(operator, name), index), found[1][name]

        equal_bits(trial, f"{name} alone and among others", parts, views, letters(trial, name))


PROPERTY = Property(
    name="batch_invariance",
    law="A batch row or a packed sequence gives the same bits alone as among others.",
    check=check,
    required=False,
    claim="batch_invariant=bitwise",
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Tile sizes chosen by batch size make a served answer depend on who else is being served, and reinforcement "
    "learning see other probabilities than the sampler did.",
)
