"""Initcheck: no kernel reads device memory that nobody wrote, as NVIDIA's compute-sanitizer sees it."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Raise the first finding."""
    for finding in trial.sanitized("initcheck"):
        trial.require(False, "uninitialised", finding)


PROPERTY = Property(
    name="initcheck",
    law="No kernel reads device memory that nobody wrote, says NVIDIA's compute-sanitizer.",
    check=check,
    required=False,
    needs=frozenset({"sanitizer"}),
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("both",), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="Workspaces that are read before they are written are zero on a young process and hold other results later.",
)
