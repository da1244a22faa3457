"""Gradient subsets: a gradient does not depend on which others are asked for."""

from linverify.properties._results import choose
from linverify.properties._spaces import CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Ask for one input's gradient alone and judge it."""
    problem = trial.problem
    if len(problem.wrt) > 1:
        problem = problem.with_(wrt=(problem.wrt[choose(trial, "input", 0, len(problem.wrt))],))
    trial.agree(trial.solve(problem), problem)


PROPERTY = Property(
    name="gradient_subsets",
    law="The gradient of one input is right when it is the only one asked for.",
    check=check,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, cotangents=("o", "both"), one_input=True, gates=CALM_GATES),
    why="A backward pass that skips work for frozen inputs may skip what the remaining gradient needs, or hand back the"
    " wrong number of gradients; fine-tuning with frozen layers meets it first.",
)
