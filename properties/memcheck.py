"""Memcheck: no kernel reads or writes outside the memory that it was given, as NVIDIA's compute-sanitizer sees it."""

from linverify.properties._sanitizer import SPACE, first_finding
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise the first finding."""
    first_finding(trial, "memcheck", "out_of_bounds")


PROPERTY = Property(
    name="memcheck",
    law="No kernel reads or writes outside allocated memory or at a misaligned address, says NVIDIA's compute-sanitizer.",
    check=check,
    needs=frozenset({"sanitizer"}),
    space=SPACE,
    weight=0.5,
    why="A read past the end whose value is masked away is harmless until the page behind it is not mapped, months later on "
    "another machine.",
    against="reads and writes outside memory",
)
