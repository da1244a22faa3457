"""Agreement: the output and the final state are the ones that the equations define.

The one law that every other law leans on, so it gets the widest space: every regime, gate and state, dense and
packed.
"""

from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge o and the final state of a forward pass against the float64 reference."""
    trial.agree(trial.solve())


PROPERTY = Property(
    name="agreement",
    law="The output and the final state equal the operator's equations, up to the rounding that the number format "
    "allows.",
    check=check,
    basic=True,
    space=Space(mixed=True, packed=None),
    weight=3.0,
    climbs=True,
    why="Masks that miss the ragged last chunk, exponentials that overflow at strong decay and offsets that mix up K "
    "and V give plausible numbers at the sizes their author tried.",
)
