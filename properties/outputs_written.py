"""Outputs written: every element that comes back was computed, none was left over in fresh memory."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Judge two runs whose fresh memory held NaN, and large numbers, before the call.

    NaN passes through every sum but not through a maximum or a comparison; a large number is the other way round.
    """
    for poison in ("nan", "large"):
        trial.agree(trial.solve(poison=poison))


PROPERTY = Property(
    name="outputs_written",
    law="Results do not depend on what fresh memory held before the call.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="Buffers taken with torch.empty are zero on a young process and hold other results later; rows that no program "
    "stores then look right in tests and wrong in training.",
    against="memory read before it is written",
)
