"""Configurations: every autotuning configuration computes the same, up to rounding."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

OTHERS = 4
"""How many configurations beside the pinned one are forced; a kernel with fewer gets the same ones again."""


def check(trial: Trial) -> None:
    """Force other configurations than the pinned one, each in a process of its own, and judge what they give."""
    for number in range(1, OTHERS + 1):
        trial.agree(trial.configured(number))


PROPERTY = Property(
    name="configurations",
    law="Autotuning configurations other than the pinned one give right results, too.",
    check=check,
    required=False,
    needs=frozenset({"configurations"}),
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="An autotuner picks by time, and picks another configuration on the user's GPU than on the one that ran the tests.",
)
