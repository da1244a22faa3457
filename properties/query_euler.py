"""Euler's identity for the query: q . dq = o . do at every token.

The output is homogeneous of degree 1 in the query and no other output sees it (law G7).
"""

from collections.abc import Sequence

import torch

from linverify.properties._balances import by_group, outputs, paired
from linverify.properties._results import letters, solved
from linverify.properties._spaces import BACKWARD, SHORT
from linverify.property import Property, Space, Tensors, Trial


def check(trial: Trial) -> None:
    """Compare both inner products, token by token."""
    problem, operator = trial.problem, trial.operator
    query = operator.of_kind("query")[0].name

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        return paired(problem, found[0], query) - by_group(outputs(problem, found[0]), problem, operator, query, 2)

    trial.relate("q . dq and o . do", [solved(trial)], residual, letters(trial, f"d{query}")[:-1])


PROPERTY = Property(
    name="query_euler",
    law="At every token the query times its gradient equals the output times its upstream gradient.",
    check=check,
    applies=lambda operator: {"M2", "G7"} <= operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, packed=None, cotangents=BACKWARD),
    why="It holds without any reference and fails when scale is applied twice, or in one direction only.",
    against="a backward pass that is not the derivative of the forward as it runs",
)
