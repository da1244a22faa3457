"""Contiguous results: the output and the final state lie in memory in the order of their axes."""

from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Raise if the worker found o or the final state to be a view of something else."""
    for breach in trial.solve().breaches:
        trial.require(breach.kind != "not_contiguous", breach.kind, breach.message)


PROPERTY = Property(
    name="contiguous_results",
    law="The output and the final state are contiguous.",
    check=check,
    required=False,
    space=Space(max_T=SHORT, packed=None, regimes=CALM, gates=CALM_GATES),
    weight=0.5,
    why="Callers view the output as [B, T, H * V]; a transposed result makes that an error, or a copy at every layer.",
)
