"""Large offsets: inputs that reach beyond 2^31 elements are read where they are."""

from linverify.properties._problems import axes_of
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Lay out each input in turn so that its last tokens are more than 2^31 elements from its first, and judge the results.

    What lies between is memory that nobody touches. The small twin of this question is what every other law asks.
    """
    for name in trial.problem.tensors:
        if "T" in axes_of(trial.operator, name):
            trial.agree(trial.solve(layout=f"distant.{name}"))


PROPERTY = Property(
    name="large_offsets",
    law="Inputs whose elements lie more than 2^31 apart give the results of their values, or are refused.",
    check=check,
    space=Space(min_T=17, max_T=SHORT, packed=None, cotangents=("none", "o"), regimes=CALM, gates=CALM_GATES),
    why="An offset computed in 32 bits wraps around at sizes that no test affords: it crashes, or reads another row of the "
    "same tensor and says nothing.",
    against="offsets that wrap at 2^31",
)
