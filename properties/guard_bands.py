"""Guard bands: nothing is written beyond an input, an upstream gradient or memory that the function allocated."""

from linverify.properties._spaces import HYGIENE, HYGIENE_WEIGHT
from linverify.property import Property, Trial


def check(trial: Trial) -> None:
    """Raise if the worker found a guard band changed."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "out_of_bounds", breach.kind, breach.message)


PROPERTY = Property(
    name="guard_bands",
    law="Nothing is written beyond the inputs, the upstream gradients and the memory that the function allocates.",
    check=check,
    space=HYGIENE,
    weight=HYGIENE_WEIGHT,
    why="A store without its mask lands in the slack behind a block, or in another tensor of the model, and never in "
    "what a test compares.",
)
