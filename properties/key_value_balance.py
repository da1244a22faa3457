"""Balance of keys and values: k . dk = v . dv at every token, where keys occur in the write k v^T and nowhere else (law G7)."""

from collections.abc import Sequence

import torch

from linverify.properties._balances import by_group, paired
from linverify.properties._results import letters, solved
from linverify.properties._spaces import BACKWARD, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Compare both inner products, token by token, summed over the heads that share a key."""
    problem, operator = trial.problem, trial.operator
    key, value = operator.of_kind("key")[0].name, operator.value_name

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        return paired(problem, found[0], key) - by_group(paired(problem, found[0], value), problem, operator, key, 2)

    trial.relate("k . dk and v . dv", [solved(trial)], residual, letters(trial, f"d{key}")[:-1])


PROPERTY = Property(
    name="key_value_balance",
    law="At every token the key times its gradient equals the value times its gradient.",
    check=check,
    applies=lambda operator: {"M3", "G7"} <= operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, packed=None, cotangents=BACKWARD),
    why="Keys and values get their gradients from separate kernels; a final-state gradient, a decay or a bonus that one"
    " of them forgets tips the balance.",
    against="a backward pass that is not the derivative of the forward as it runs",
)
