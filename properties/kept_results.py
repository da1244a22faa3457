"""Kept results: the caller alone holds what a call returned."""

from linverify.properties._spaces import HYGIENE, HYGIENE_WEIGHT
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise if a result's memory outlived the last reference that the caller had."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "kept_result", breach.kind, breach.message)


PROPERTY = Property(
    name="kept_results",
    law="The function keeps no reference to the memory of its results.",
    check=check,
    required=False,
    space=HYGIENE,
    weight=HYGIENE_WEIGHT,
    why="Kept outputs are device memory that never comes back, and the first half of a cache that answers by address.",
)
