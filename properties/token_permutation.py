"""Token permutation: without a mask, attention knows no order of its tokens.

Law M8. The tokens are put in the order of one key channel, from small to large: the running maximum of an online softmax then
rises with every tile, which no shuffled sequence does. Cases have several tiles of 16.
"""

import torch

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._independence import compare
from linverify.properties._problems import asked, axes_of, taken
from linverify.properties._results import choose, solved
from linverify.properties._spaces import SHORT
from linverify.property import Property, Space, Trial


def rising(problem: Problem, operator: Operator, column: int) -> list[int]:
    """Tokens in the order in which one column of the key rises, in the first batch row and head."""
    name = operator.of_kind("key")[0].name
    key, axes = problem.tensors[name].double(), axes_of(operator, name)
    rows = key.movedim(axes.index("T"), 0).reshape(key.shape[axes.index("T")], -1)
    found: list[int] = torch.argsort(rows[:, column], stable=True).tolist()
    return found


def check(trial: Trial) -> None:
    """Sort the tokens and compare all results with those of the given order."""
    width = trial.problem.tensors[trial.operator.of_kind("key")[0].name].shape[-1]
    order = {"T": rising(trial.problem, trial.operator, choose(trial, "column", 0, width))}
    other = solved(trial, taken(trial.problem, trial.operator, order))
    compare(trial, "of the tokens in another order", (solved(trial), other), asked(trial.problem), order)


PROPERTY = Property(
    name="token_permutation",
    law="Attention over all tokens gives each token the same, whatever order the tokens come in, up to rounding.",
    check=check,
    applies=lambda operator: "M8" in operator.identities,
    space=Space(max_T=SHORT, min_T=33, cotangents=("none", "o"), regimes=("normal", "outlier", "range")),
    why="A ragged last tile, a running maximum that is not carried on, a cut-off relative to the first tile: random "
    "tokens hide what depends on their place.",
    against="tiles that depend on the order of the tokens",
)
