"""Form equivalence: two forms of one operator give the same results."""

from collections.abc import Sequence
from functools import partial

import torch

from linverify.properties._results import equal_within_budget, letters, solved
from linverify.properties._spaces import BACKWARD
from linverify.property import Property, Space, Tensors, Trial


def views(name: str, found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same result of both forms."""
    return found[0][name], found[1][name]


def check(trial: Trial) -> None:
    """Compare the target with a built-in form of the operator, run in a process of its own."""
    mine, other = solved(trial), trial.other_form(trial.problem)
    for name in [name for name in other.named() if name in mine[1].named()]:
        parts = [mine, (trial.problem, other)]
        equal_within_budget(trial, f"{name} of two forms", parts, partial(views, name), letters(trial, name))


PROPERTY = Property(
    name="form_equivalence",
    law="Parallel, recurrent and chunkwise forms of one operator agree within the rounding of both.",
    check=check,
    space=Space(packed=None, cotangents=("none", *BACKWARD)),
    why="Training runs the chunkwise form and generation the recurrent one; a difference between them shows only in samples.",
)
