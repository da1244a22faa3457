"""Infinite gate: a log gate of minus infinity forgets everything.

Reported only: chunkwise forms take differences of cumulative gates, and infinity minus infinity is NaN.
"""

from linverify.properties._spaces import CALM, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge a call in which some gates are minus infinity."""
    trial.agree(trial.solve())


PROPERTY = Property(
    name="infinite_gate",
    law="A gate of minus infinity forgets all earlier tokens and nothing else.",
    check=check,
    required=False,
    applies=lambda operator: bool(operator.of_kind("log_gate")),
    space=Space(max_T=SHORT, gates=("inf",), regimes=CALM),
    weight=0.5,
    why="The logarithm of a forget gate that reached zero is minus infinity, and so is a mask written as a gate.",
)
