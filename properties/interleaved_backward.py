"""Interleaved backward: another forward pass between a call's forward and backward passes changes no gradient."""

from linverify.problem import Call, Program
from linverify.properties._problems import mirrored
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Call, call forward with other values of the same shapes, then ask the first call's gradients, and judge them."""
    other = mirrored(trial.problem, trial.operator)
    (result,) = trial.run(Program((Call(trial.problem, between=other),)))
    trial.agree(result)


PROPERTY = Property(
    name="interleaved_backward",
    law="The gradients of a call are right when another forward pass runs before its backward pass.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("o", "both"), regimes=CALM, gates=CALM_GATES),
    needs=frozenset({"gradients"}),
    why="Every layer of a model runs forward before any runs backward: what a kernel leaves for its backward pass in a "
    "workspace of its module is then another layer's.",
    against="a workspace that forward and backward share",
)
