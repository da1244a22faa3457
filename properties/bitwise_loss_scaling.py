"""Bitwise loss scaling: gradients of a loss times a power of two are the same numbers with another exponent."""

from functools import partial

from linverify.properties._problems import asked
from linverify.properties._results import equal_bits, letters, solved
from linverify.properties._spaces import BACKWARD, CALM, CALM_GATES, SHORT
from linverify.properties.loss_scaling import scaled, views
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Compare the bits of every gradient."""
    parts = [solved(trial), solved(trial, scaled(trial.problem))]
    for name in asked(trial.problem):
        if name.startswith("d"):
            equal_bits(trial, f"{name} of a scaled loss", parts, partial(views, name), letters(trial, name))


PROPERTY = Property(
    name="bitwise_loss_scaling",
    law="Multiplying the upstream gradients by a power of two multiplies every gradient by it, bit by bit.",
    check=check,
    required=False,
    applies=lambda operator: "G13" in operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(
        max_T=SHORT, cotangents=BACKWARD, regimes=CALM, gates=CALM_GATES, dtypes=("fp64", "fp32", "tf32", "bf16")
    ),
    weight=0.5,
    why="Short of over- and underflow only a constant hidden in the backward pass can break it.",
)
