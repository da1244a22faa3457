"""Repeated call: the same question twice gets a right answer twice."""

from linverify.problem import Call, Program
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Ask the same three times in one process and judge every answer."""
    for result in trial.run(Program((Call(trial.problem),) * 3)):
        trial.agree(result)


PROPERTY = Property(
    name="repeated_call",
    law="Calling again with the same inputs gives the right results again.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Workspaces that are added to but never cleared, and autotuners that try configurations on live buffers, are "
    "right once.",
    against="a workspace that is not cleared, or a race",
)
