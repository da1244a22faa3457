"""Inputs untouched: a call leaves the tensors it was given as they were."""

from linverify.properties._spaces import CALM_GATES, HYGIENE_WEIGHT, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Raise if the worker found an input or an upstream gradient changed after the call."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "mutated_input", breach.kind, breach.message)


PROPERTY = Property(
    name="inputs_untouched",
    law="The inputs, the initial state and the upstream gradients hold the same bits after the call as before it.",
    check=check,
    space=Space(
        max_T=SHORT,
        packed=None,
        cotangents=("none", "both"),
        layouts=("contiguous", "offset"),
        gates=CALM_GATES,
        scales=("sqrt", "other", "default"),  # an input that is multiplied by 1 in place holds the same bits
    ),
    weight=HYGIENE_WEIGHT,
    why="Scaling q in place, or updating a cached state through a view, corrupts residual branches, shared prefix "
    "caches and everything that autograd saved.",
)
