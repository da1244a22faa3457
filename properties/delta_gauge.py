"""Gauge of the delta rule: k . dk + v . dv = 2 beta dbeta at every token.

Scaling a token's key and value by c and its strength by 1/c^2 changes no state (laws M14, G11).
"""

from collections.abc import Sequence

import torch

from linverify.properties._balances import paired, weighted
from linverify.properties._results import letters, solved
from linverify.properties._spaces import BACKWARD, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Compare both sides, token by token."""
    problem, operator = trial.problem, trial.operator
    key, value, strength = (operator.of_kind(kind)[0].name for kind in ("key", "value", "strength"))

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        factors = paired(problem, found[0], key) + paired(problem, found[0], value)
        return factors - 2 * weighted(problem, found[0], strength)

    trial.relate("k . dk + v . dv and 2 beta dbeta", [solved(trial)], residual, letters(trial, strength))


PROPERTY = Property(
    name="delta_gauge",
    law="At every token key and value times their gradients equal twice the write strength times its gradient.",
    check=check,
    applies=lambda operator: "G11" in operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, packed=None, cotangents=BACKWARD),
    why="The key of a delta rule is written, read and solved with: of its gradient's three paths one is easily lost, "
    "and only dk shows it.",
    against="a backward pass that is not the derivative of the forward as it runs",
)
