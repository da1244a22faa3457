"""Balance of key channels: sum over t of (q dq - k dk) = rowsum(S_0 dS_0) - rowsum(S_T dS_T), channel by channel.

Multiplying one channel of the query by c and dividing the key's and the initial state's by c leaves the output alone
(law G5).
"""

from collections.abc import Sequence

import torch

from linverify.properties._balances import by_group, final_states, initial_states, weighted
from linverify.properties._results import solved
from linverify.properties._spaces import BACKWARD, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Add up over time and compare, channel by channel."""
    problem, operator = trial.problem, trial.operator
    query, key = operator.of_kind("query")[0].name, operator.of_kind("key")[0].name

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        states = final_states(problem, found[0], operator) - initial_states(problem, found[0], operator)
        if isinstance(states, torch.Tensor):
            states = by_group(states, problem, operator, key, 1)
        return (weighted(problem, found[0], query) - weighted(problem, found[0], key)).sum(1) + states

    trial.relate("q dq, k dk and the states of each channel", [solved(trial)], residual, "bhk")


PROPERTY = Property(
    name="channel_balance",
    law="Summed over time, query times gradient less key times gradient equals the change of state times its gradient, "
    "in every key channel.",
    check=check,
    applies=lambda operator: "G5" in operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, cotangents=BACKWARD),
    why="It sees the gradients of the initial and the final state, which separate kernels often compute or drop.",
    against="a backward pass that is not the derivative of the forward as it runs",
)
