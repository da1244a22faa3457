"""Configurations: every autotuning configuration computes the same, up to rounding."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Force every configuration of every autotuned kernel that the case launches, and judge what it gives."""
    trial.sweep()


PROPERTY = Property(
    name="configurations",
    law="Every autotuning configuration of every kernel that is launched gives right results, not the pinned one alone.",
    check=check,
    required=False,
    needs=frozenset({"configurations"}),
    space=Space(min_T=65, max_T=SHORT, packed=None, cotangents=("both",), regimes=CALM, gates=CALM_GATES),
    weight=0.2,
    lists=True,
    why="An autotuner picks by time, and picks another configuration on the user's GPU than on the one that ran the tests.",
)
