"""Bitwise repeatable: the same question gets the same bits."""

from linverify.problem import Call, Program
from linverify.properties._problems import asked
from linverify.properties._results import complete, equal, letters
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

CALLS = 8


def check(trial: Trial) -> None:
    """Ask the same several times in one process and compare the bits."""
    problem = trial.problem
    first, *others = trial.run(Program((Call(problem),) * CALLS))
    for result in (first, *others):
        complete(trial, (problem, result))
    for name in asked(problem):
        before = first.named()[name]
        differ = [other.named()[name] for other in others if not equal(before, other.named()[name])]
        if differ:
            # A race that stays within the rounding is still a race, and says so here.
            trial.agree(first)
            what = f"{name} of equal calls ({len(differ)} of {len(others)} repetitions differ, within the rounding)"
            trial.identical(what, before, differ[0], letters(trial, name))


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
