"""Gradient subsets: a gradient does not depend on which others are asked for."""

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._spaces import CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def of_one(problem: Problem, operator: Operator, name: str) -> Problem:
    """The problem that asks for one input's gradient.

    The final state does not see a query, a bonus or other readers: alone, they get no gradient from it. (From three tokens
    on every other input reaches both the output and the final state, whatever the order of read, write and decay.)
    """
    cotangents = {n: x for n, x in problem.cotangents.items() if n == "o" or name not in operator.readers}
    return problem.with_(wrt=(name,), cotangents=cotangents)


def check(trial: Trial) -> None:
    """Ask for each input's gradient alone and judge it; all of them together have the same reference."""
    for name in trial.problem.wrt:
        result = trial.solve(of_one(trial.problem, trial.operator, name))
        trial.agree(result, trial.problem, results=("o", f"d{name}"))


PROPERTY = Property(
    name="gradient_subsets",
    law="The gradient of each input is right when it is the only one asked for.",
    check=check,
    needs=frozenset({"gradients"}),
    space=Space(min_T=3, max_T=SHORT, cotangents=("o", "both"), gates=CALM_GATES),
    why="A backward pass that skips work for frozen inputs may skip what the remaining gradient needs, or hand back the "
    "wrong number of gradients; fine-tuning with frozen layers meets it first.",
    against="work skipped for inputs without gradient",
)
