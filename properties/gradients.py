"""Gradients: every input's gradient is the derivative of the operator's equations."""

from linverify.properties._spaces import BACKWARD
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge the results of a differentiated pass: o, state and all gradients together."""
    trial.agree(trial.solve())


PROPERTY = Property(
    name="gradients",
    law="Every gradient is the derivative of the equations, for upstream gradients of the output, of the final state "
    "and of both.",
    check=check,
    basic=True,
    needs=frozenset({"gradients"}),
    space=Space(mixed=True, packed=None, cotangents=BACKWARD),
    weight=3.0,
    climbs=True,
    why="Two bugs in five show in the backward pass only: a term lost on the way through the decay, a gradient of the "
    "final state that is never read, a matrix used untransposed.",
)
