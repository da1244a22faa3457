"""First gate: with no initial state, the first gate of a sequence has gradient zero (law G6): it multiplies a state of zeros.

What a kernel returns there is rounding error and nothing else, which makes it a meter of the way the gradient is
computed.
"""

from collections.abc import Sequence

import torch

from linverify.properties._balances import gates_the_state_alone, paired, weighted
from linverify.properties._results import letters, solved
from linverify.properties._spaces import BACKWARD, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Look at the gate gradient of the first token; a step size keeps its path through the value."""
    problem, operator = trial.problem, trial.operator
    gate = operator.of_kind("log_gate", "step_size")[0]

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        first = found[0][f"d{gate.name}"][:, :1]
        if gate.kind == "log_gate":
            return first
        return (weighted(problem, found[0], gate.name) - paired(problem, found[0], operator.value_name))[:, :1]

    trial.relate("the gradient of the first gate and zero", [solved(trial)], residual, letters(trial, f"d{gate.name}"))


PROPERTY = Property(
    name="first_gate",
    law="With no initial state the gradient of the first token's gate is zero.",
    check=check,
    applies=gates_the_state_alone,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, states=("absent",), cotangents=BACKWARD),
    weight=0.5,
    why="Gate gradients obtained as a difference of long sums leave the noise of the whole sequence at its first token.",
)
