"""Aliasing: results lie in memory of their own."""

from linverify.problem import Call, Program
from linverify.properties._problems import forward_only, mirrored
from linverify.properties._spaces import CALM, CALM_GATES, HYGIENE_WEIGHT, SHORT
from linverify.property import Property, Space, Trial


def check(trial: Trial) -> None:
    """Call many times, alternating the values, while every result is held; raise if two of them share an address."""
    forward = forward_only(trial.problem)
    calls = tuple(Call(p) for p in (trial.problem, *(forward, mirrored(forward, trial.operator)) * 5))
    for result in trial.run(Program(calls)):
        for breach in result.breaches:
            trial.require(breach.kind != "aliased", breach.kind, breach.message)


PROPERTY = Property(
    name="aliasing",
    law="The output and the final state share no memory with each other, with an input or with an earlier result.",
    check=check,
    space=Space(max_T=SHORT, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    weight=HYGIENE_WEIGHT,
    why="A view of a cached buffer has the right values until the next call; a state that is the caller's own tensor "
    "changes under whoever else reads it.",
)
