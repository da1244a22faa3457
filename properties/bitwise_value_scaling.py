"""Bitwise value scaling: doubling the values and the initial state doubles the results, bit by bit.

A power of two changes exponents only, so arithmetic that treats values linearly commutes with it exactly, short of
over- and underflow.
"""

from collections.abc import Sequence
from functools import partial

import torch

from linverify.properties._problems import asked, linear_part
from linverify.properties._results import equal_bits, letters, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Tensors, Trial

_FACTOR = 4.0


def views(name: str, found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
    """The scaled result, and the result of scaled values."""
    return found[0][name] * _FACTOR, found[1][name]


def check(trial: Trial) -> None:
    """Compare the bits of both sides."""
    problem, name = linear_part(trial.problem, trial.operator), trial.operator.value_name
    state = problem.initial_state
    scaled = problem.with_tensors(**{name: problem.tensors[name] * _FACTOR})
    scaled = scaled.with_(initial_state=None if state is None else state * _FACTOR)
    parts = [solved(trial, problem), solved(trial, scaled)]
    for result in asked(problem):
        equal_bits(trial, f"{result} of scaled values", parts, partial(views, result), letters(trial, result))


PROPERTY = Property(
    name="bitwise_value_scaling",
    law="Multiplying the values and the initial state by a power of two multiplies the results by it, bit by bit.",
    check=check,
    required=False,
    applies=lambda operator: "M1" in operator.identities,
    space=Space(max_T=SHORT, regimes=CALM, gates=CALM_GATES, dtypes=("fp64", "fp32", "tf32", "bf16")),
    weight=0.5,
    why="A constant added for safety, or a value compared with a fixed threshold, shows here first.",
)
