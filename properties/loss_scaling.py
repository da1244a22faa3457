"""Loss scaling: gradients are proportional to the upstream gradients (law G13)."""

from collections.abc import Sequence
from functools import partial

import torch

from linverify.problem import Problem
from linverify.properties._problems import asked
from linverify.properties._results import equal_within_budget, letters, solved
from linverify.properties._spaces import BACKWARD, CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Tensors, Trial

FACTOR = 8.0
"""A power of two, which changes exponents only."""


def scaled(problem: Problem) -> Problem:
    """The problem with larger upstream gradients."""
    return problem.with_(cotangents={name: x * FACTOR for name, x in problem.cotangents.items()})


def views(name: str, found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled gradients, and gradients of scaled upstream gradients."""
    return found[0][name] * FACTOR, found[1][name]


def check(trial: Trial) -> None:
    """Compare every gradient."""
    parts = [solved(trial), solved(trial, scaled(trial.problem))]
    for name in asked(trial.problem):
        if name.startswith("d"):
            equal_within_budget(trial, f"{name} of a scaled loss", parts, partial(views, name), letters(trial, name))


PROPERTY = Property(
    name="loss_scaling",
    law="Multiplying the upstream gradients by a power of two multiplies every gradient by it, up to rounding.",
    check=check,
    applies=lambda operator: "G13" in operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, cotangents=BACKWARD, regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="Terms added to a gradient without the upstream factor are right for a loss of scale one and wrong in every "
    "mixed-precision run.",
    against="a gradient term without the upstream factor",
)
