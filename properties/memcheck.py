"""Memcheck: no kernel reads or writes outside the memory that it was given, as NVIDIA's compute-sanitizer sees it."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Raise the first finding."""
    for finding in trial.sanitized("memcheck"):
        trial.require(False, "out_of_bounds", finding)


PROPERTY = Property(
    name="memcheck",
    law="No kernel reads or writes outside allocated memory or at a misaligned address, says NVIDIA's compute-sanitizer.",
    check=check,
    needs=frozenset({"sanitizer"}),
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("both",), regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="A read past the end whose value is masked away is harmless until the page behind it is not mapped, months later on "
    "another machine.",
)
