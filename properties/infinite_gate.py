"""Infinite gate: a log gate of minus infinity forgets everything.

Judged twice: on drawn gates of which some are minus infinity, and with one token at which all are and after which nothing is
written any more. What is left is then exactly nothing, whatever the form and the format: a product with exp(-inf) = 0 has no
rounding. So the smallest remainder shows; a kernel that clamps exponents at -20 keeps two parts in 10^9 of the past, which
the rounding of what follows would hide.

Reported only: chunkwise forms take differences of cumulative gates, and infinity minus infinity is NaN.
"""

import torch

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._problems import axes_of, length_of
from linverify.properties._results import choose, letters, solved
from linverify.properties._spaces import CALM, SHORT
from linverify.property import Property, Space, Trial


def silent_after(problem: Problem, operator: Operator, token: int) -> Problem:
    """Let every gate be minus infinity at one token alone, and nothing be written from there on."""
    tensors = {name: x.clone() for name, x in problem.tensors.items()}
    for gate in operator.of_kind("log_gate"):
        tensors[gate.name].masked_fill_(tensors[gate.name].isinf(), -1.0)
        tensors[gate.name][:, token] = -torch.inf
    for reader in operator.of_kind("low_rank_a"):
        tensors[reader.name][:, token] = 0  # it may read the state before its decay, and carry it past the reset
    tensors[operator.value_name][:, token:] = 0
    return problem.with_(tensors=tensors)


def check(trial: Trial) -> None:
    """Judge a call in which some gates are minus infinity, and one after which nothing may be left."""
    problem, operator = trial.problem, trial.operator
    trial.agree(trial.solve())
    length, exclusive = length_of(problem, operator, "T"), len(operator.of_kind("bonus"))
    token = choose(trial, "token", 1, length)
    left = solved(trial, silent_after(problem, operator, token))[1].named()
    time = axes_of(operator, "o").index("T")
    after = left["o"].narrow(time, token + exclusive, length - token - exclusive)
    what = f"after a gate of minus infinity at token {token} and no values from there on"
    trial.identical(f"o {what}", torch.zeros_like(after), after, letters(trial, "o"))
    if problem.final_state:
        state = left["state"]
        trial.identical(f"the final state {what}", torch.zeros_like(state), state, letters(trial, "state"))


PROPERTY = Property(
    name="infinite_gate",
    law="A gate of minus infinity forgets all earlier tokens and nothing else.",
    check=check,
    required=False,
    applies=lambda operator: bool(operator.of_kind("log_gate")),
    space=Space(max_T=SHORT, min_T=2, gates=("inf",), regimes=CALM),
    weight=0.5,
    why="The logarithm of a forget gate that reached zero is minus infinity, and so is a mask written as a gate.",
)
