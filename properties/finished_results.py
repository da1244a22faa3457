"""Finished results: what a function returns is complete in the order of the caller's stream."""

from linverify.properties._spaces import CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Raise if a copy made when the function returned differs from the result once everything has come to rest."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "late_write", breach.kind, breach.message)


PROPERTY = Property(
    name="finished_results",
    law="The output and the final state are complete when the function returns, for whoever reads them next.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), gates=CALM_GATES),
    why="Work left on a stream of its own, or in a thread, is done by the time a test synchronises and not when the "
    "next layer reads; it also hides the time that it takes.",
)
