"""Reductions: with restricted inputs an operator becomes a simpler one, and the kernel must follow it there.

The restrictions (equal gates in all channels, strength zero, step size one) are corners of the input space that
random draws never hit.
"""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Restrict the inputs in each of the ways there are, and judge the results by the equations: now the simpler operator's."""
    for reduction in trial.operator.reductions:
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
