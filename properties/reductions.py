"""Reductions: with restricted inputs an operator becomes a simpler one, and the kernel must follow it there.

The restrictions (equal gates in all channels, strength zero, step size one) are corners of the input space that
random draws never hit.
"""

from linverify.properties._results import choose
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Restrict the inputs and judge the result; the equations then are those of the simpler operator."""
    reductions = trial.operator.reductions
    reduction = reductions[choose(trial, "reduction", 0, len(reductions))]
    restricted = trial.problem.with_tensors(**reduction.restrict(trial.problem.tensors))
    trial.agree(trial.solve(restricted), restricted)


PROPERTY = Property(
    name="reductions",
    law="With its inputs restricted, the operator gives the results of the simpler operator it then is.",
    check=check,
    applies=lambda operator: bool(operator.reductions),
    space=Space(max_T=SHORT, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Branches for an absent gate or a zero strength are separate code; one of them updated the state only when "
    "there was a gate.",
)
