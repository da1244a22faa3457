"""Strided cotangents: upstream gradients that are views are read as what they are, or refused."""

from linverify.problem import Refused
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge backward passes from an expanded and from a sliced upstream gradient; raise a refusal after both."""
    refusals: list[Refused] = []
    for layout in dict.fromkeys((trial.case.cotangent, "strided")):
        try:
            trial.agree(trial.solve(cotangent_layout=layout))
        except Refused as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]


PROPERTY = Property(
    name="strided_cotangents",
    law="Upstream gradients with stride 0, or cut from a larger tensor, give the gradients of their values, or are "
    "refused.",
    check=check,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, packed=None, cotangents=("expanded", "strided"), regimes=CALM, gates=CALM_GATES),
    why="The gradient of a sum has stride 0 and that of a split is a slice; a backward kernel that takes the output's "
    "strides for them reads beyond.",
    against="strides of the upstream gradients",
)
