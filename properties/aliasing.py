"""Aliasing: results lie in memory of their own."""

from linverify.problem import Call, Program
from linverify.properties._problems import mirrored
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Call several times, alternating the values, while every result is held; raise if two of them share an address."""
    other = mirrored(trial.problem, trial.operator)
    calls = tuple(Call(p) for p in (trial.problem, other) * 5)
    for result in trial.run(Program(calls)):
        for breach in result.breaches:
            trial.require(breach.kind != "aliased", breach.kind, breach.message)


PROPERTY = Property(
    name="aliasing",
    law="The output and the final state share no memory with each other, with an input or with an earlier result.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    why="A view of a cached buffer has the right values until the next call; a state that is the caller's own tensor "
    "changes under whoever else reads it.",
)
