"""Balance of a linear map: v . dv + S_0 . dS_0 = o . do + S_T . dS_T for every head of every row.

The output and the final state are linear in the values and the initial state together (law G7), and a linear map and
its transpose give the same inner product.
"""

from collections.abc import Sequence

import torch

from linverify.properties._balances import final_states, initial_states, outputs, paired
from linverify.properties._problems import axes_of
from linverify.properties._results import solved
from linverify.properties._spaces import BACKWARD, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Compare what goes in with what comes out, head by head."""
    problem, operator = trial.problem, trial.operator
    value, time = operator.value_name, axes_of(operator, "o").index("T")

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        by_channel = initial_states(problem, found[0], operator) - final_states(problem, found[0], operator)
        states = by_channel.sum(-1) if isinstance(by_channel, torch.Tensor) else by_channel
        return (paired(problem, found[0], value) - outputs(problem, found[0])).sum(time) + states

    trial.relate("v . dv + S_0 . dS_0 and o . do + S_T . dS_T", [solved(trial)], residual, "bh")


PROPERTY = Property(
    name="linear_balance",
    law="For every head, values and initial state times their gradients equal output and final state times their "
    "upstream gradients.",
    check=check,
    applies=lambda operator: {"M1", "G7"} <= operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, cotangents=BACKWARD),
    why="A backward pass that is no transpose of its forward pass (a term lost at a chunk border, a state gradient "
    "ignored) cannot keep it.",
    against="a backward pass that is not the derivative of the forward as it runs",
)
