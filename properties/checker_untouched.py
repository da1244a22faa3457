"""Checker untouched: the answer is the target's own, and nothing that would see a fault was replaced."""

from linverify.properties._spaces import HYGIENE, HYGIENE_WEIGHT
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise if the worker saw the target import, replace or search for what belongs to the checker."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "interference", breach.kind, breach.message)


PROPERTY = Property(
    name="checker_untouched",
    law="The target computes its answers itself and changes nothing that the check relies on.",
    check=check,
    space=HYGIENE,
    weight=HYGIENE_WEIGHT,
    why="Kernels written to satisfy a checker have called its reference, replaced its comparison and searched its "
    "memory; their results are right, and they compute nothing.",
)
