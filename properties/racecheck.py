"""Racecheck: no two threads of a kernel race for shared memory, as NVIDIA's compute-sanitizer sees it."""

from linverify.properties._sanitizer import SPACE, first_finding
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise the first finding."""
    first_finding(trial, "racecheck", "race")


PROPERTY = Property(
    name="racecheck",
    law="No two threads of a kernel access shared memory in an undefined order, says NVIDIA's compute-sanitizer.",
    check=check,
    needs=frozenset({"sanitizer"}),
    space=SPACE,
    weight=0.5,
    why="A missing barrier between pipeline stages gives the right result on one GPU, and now and then a wrong one on the "
    "next.",
    against="races in shared memory",
)
