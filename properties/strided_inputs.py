"""Strided inputs: views of larger tensors are read as what they are, or refused."""

from linverify.problem import Refused
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge calls whose inputs are slices, offsets and what the case says; raise a refusal only after all were asked."""
    refusals: list[Refused] = []
    for layout in dict.fromkeys((trial.case.layout, "strided", "offset")):
        try:
            trial.agree(trial.solve(layout=layout))
        except Refused as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]


PROPERTY = Property(
    name="strided_inputs",
    law="Inputs that are slices, offsets or expansions of other tensors give the results of their values, or are "
    "refused.",
    check=check,
    space=Space(
        max_T=SHORT,
        packed=None,
        layouts=("strided", "offset", "expanded"),
        cotangents=("none", "o"),
        regimes=CALM,
        gates=CALM_GATES,
    ),
    why="Queries, keys and values cut from one fused projection have strides of their own; a kernel that assumes them "
    "reads its neighbours.",
    against="strides of the inputs",
)
