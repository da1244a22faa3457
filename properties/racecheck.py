"""Racecheck: no two threads of a kernel race for shared memory, as NVIDIA's compute-sanitizer sees it."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Raise the first finding."""
    for finding in trial.sanitized("racecheck"):
        trial.require(False, "race", finding)


PROPERTY = Property(
    name="racecheck",
    law="No two threads of a kernel access shared memory in an undefined order, says NVIDIA's compute-sanitizer.",
    check=check,
    needs=frozenset({"sanitizer"}),
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("both",), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="A missing barrier between pipeline stages gives the right result on one GPU, and now and then a wrong one on the "
    "next.",
)
