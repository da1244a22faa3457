"""Form equivalence: two forms of one operator give the same results."""

from linverify.properties._results import letters
from linverify.properties._spaces import BACKWARD
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Compare the target with a built-in form of the operator, run in a process of its own."""
    mine, other = trial.solve(), trial.other_form(trial.problem)
    for name in [n for n in other.named() if n in mine.named()]:
        trial.relate(
            f"{name} of two forms",
            [(trial.problem, mine), (trial.problem, other)],
            lambda found, n=name: found[0][n] - found[1][n],
            letters(trial, name),
        )


PROPERTY = Property(
    name="form_equivalence",
    law="Parallel, recurrent and chunkwise forms of one operator agree within the rounding of both.",
    check=check,
    space=Space(packed=None, cotangents=("none", *BACKWARD)),
    why="Training runs the chunkwise form and generation the recurrent one; a difference between them shows only in samples.",
)
