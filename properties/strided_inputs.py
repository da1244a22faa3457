"""Strided inputs: views of larger tensors are read as what they are, or refused."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge a call whose inputs lie in memory as the case says; an exception is a refusal and not counted."""
    trial.agree(trial.solve())


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
)
