"""Bitwise repeatable: the same question gets the same bits."""

from linverify.problem import Call, Program
from linverify.properties._problems import asked
from linverify.properties._results import complete, letters
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Ask the same several times in one process and compare the bits."""
    problem = trial.problem
    first, *others = trial.run(Program((Call(problem),) * 4))
    complete(trial, (problem, first))
    for other in others:
        complete(trial, (problem, other))
        for name in asked(problem):
            trial.identical(f"{name} of equal calls", first.named()[name], other.named()[name], letters(trial, name))


PROPERTY = Property(
    name="bitwise_repeatable",
    law="Calling again with the same inputs gives the same bits.",
    check=check,
    required=False,
    claim="deterministic=true",
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Atomic additions come in any order; a run that cannot be repeated cannot be debugged, and a race between "
    "programs looks the same.",
)
