"""Strided cotangents: upstream gradients that are views are read as what they are, or refused."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge a backward pass from an expanded or sliced upstream gradient; an exception is a refusal and not counted."""
    trial.agree(trial.solve())


PROPERTY = Property(
    name="strided_cotangents",
    law="Upstream gradients with stride 0, or cut from a larger tensor, give the gradients of their values, or are "
    "refused.",
    check=check,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, packed=None, cotangents=("expanded", "strided"), regimes=CALM, gates=CALM_GATES),
    why="The gradient of a sum has stride 0 and that of a split is a slice; a backward kernel that takes the output's "
    "strides for them reads beyond.",
)
