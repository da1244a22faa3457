"""Plain process: the answers are right where nothing tells the function that it is being checked."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge what a process gives that holds torch and the target, and nothing of the checker."""
    trial.agree(trial.unwatched())


PROPERTY = Property(
    name="plain_process",
    law="Results are right, too, in a plain process that holds nothing of the checker.",
    check=check,
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    weight=0.5,  # whatever else the function sees, it sees in every call
    why="A function can see a checker in its modules, its environment, its callers or in the poison in fresh memory, and "
    "be careful only then.",
)
