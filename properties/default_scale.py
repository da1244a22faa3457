"""Default scale: a scale that is not passed is the one that users expect of the operator."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge a call that does not pass the scale."""
    trial.agree(trial.solve())


PROPERTY = Property(
    name="default_scale",
    law="Without a scale the operator's usual default holds.",
    check=check,
    required=False,
    needs=frozenset({"scale"}),
    space=Space(max_T=SHORT, scales=("default",), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="Forms of one library differ in their default by a factor of the square root of K, and models move between "
    "them.",
)
