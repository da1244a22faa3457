"""Changed in place: new values in the same tensors give the results of the new values."""

from linverify.properties._in_place import then
from linverify.properties._problems import mirrored
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

_STALE = (
    "right with the first values, wrong once others are written into the same tensors: something of the first call is "
    "remembered by address or identity"
)


def check(trial: Trial) -> None:
    """Ask, overwrite the input tensors in place, ask again with the very same tensors, and judge both answers."""
    then(trial, mirrored(trial.problem, trial.operator), _STALE)


PROPERTY = Property(
    name="changed_in_place",
    law="Overwriting the input tensors and calling again gives the results of the new values.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="A result remembered by the address of its input, harmless in tests that make fresh tensors, is stale under "
    "static buffers, CUDA graphs and optimisers that update weights in place.",
    against="results remembered by address",
)
