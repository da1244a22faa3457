"""Finished results: what a function returns is complete in the order of the caller's stream."""

from linverify.properties._spaces import HYGIENE, HYGIENE_WEIGHT
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise if a copy made when the function returned differs from the result once everything has come to rest."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "late_write", breach.kind, breach.message)


PROPERTY = Property(
    name="finished_results",
    law="The output and the final state are complete when the function returns, for whoever reads them next.",
    check=check,
    space=HYGIENE,
    weight=HYGIENE_WEIGHT,
    why="Work left on a stream of its own, or in a thread, is done by the time a test synchronises and not when the "
    "next layer reads; it also hides the time that it takes.",
)
