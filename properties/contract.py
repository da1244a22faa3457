"""Contract: shapes, dtypes, devices and number of the results are those that callers rely on."""

from linverify.properties._spaces import CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

# Have properties of their own.
_ELSEWHERE = (
    *("mutated_input", "not_contiguous", "out_of_bounds", "aliased", "late_write", "kept_result", "interference"),
)


def check(trial: Trial) -> None:
    """Raise the first breach that the worker saw."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind in _ELSEWHERE, breach.kind, breach.message)


PROPERTY = Property(
    name="contract",
    law="The call returns o in the shape and dtype of the values, the final state exactly when asked for, and for every"
    " input a gradient of that input's shape and dtype.",
    check=check,
    basic=True,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), gates=CALM_GATES),
    why="A state returned unasked, an output left in float32 or a gradient that is None surfaces far away, as a broken "
    "cache or a parameter that does not learn.",
)
