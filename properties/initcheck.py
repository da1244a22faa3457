"""Initcheck: no kernel reads device memory that nobody wrote, as NVIDIA's compute-sanitizer sees it."""

from linverify.properties._sanitizer import SPACE, first_finding
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise the first finding."""
    first_finding(trial, "initcheck", "uninitialised")


PROPERTY = Property(
    name="initcheck",
    law="No kernel reads device memory that nobody wrote, says NVIDIA's compute-sanitizer.",
    check=check,
    required=False,
    needs=frozenset({"sanitizer"}),
    space=SPACE,
    weight=0.5,
    why="Workspaces that are read before they are written are zero on a young process and hold other results later.",
)
