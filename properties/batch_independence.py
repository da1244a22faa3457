"""Batch independence: rows of a batch do not know of each other."""

from linverify.properties._independence import alone_and_permuted
from linverify.properties._problems import length_of, rows
from linverify.properties._spaces import SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Reorder the rows, and take one alone."""
    alone_and_permuted(trial, "batch rows", length_of(trial.problem, trial.operator, "B"), rows)


PROPERTY = Property(
    name="batch_independence",
    law="Batch rows in another order, or one row alone, give the same results, up to rounding.",
    check=check,
    space=Space(max_T=SHORT, min_B=2, cotangents=("none", "both")),
    why="A state or gate addressed without the batch stride is right for the first row, which is the row that short "
    "tests look at.",
    against="batch rows mixed up",
)
