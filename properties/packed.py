"""Packed: sequences joined end to end are computed as if each were alone.

Law M19. The results of separate calls, put together, are judged by the very budget of the packed call.
"""

from collections.abc import Mapping

import torch

from linverify.problem import Result
from linverify.properties._problems import asked, axes_of, bounds, sequence
from linverify.properties._results import solved
from linverify.property import Property, Space, Tensors, Trial


def joined(trial: Trial, name: str, whole: torch.Tensor, parts: Mapping[int, Tensors]) -> torch.Tensor:
    """A result of the separate calls as the packed call would give it.

    An empty sequence cannot be asked alone; its state is taken from the packed call, `whole`.
    """
    axis = axes_of(trial.operator, name).index("T" if "T" in axes_of(trial.operator, name) else "N")
    if "T" in axes_of(trial.operator, name):
        return torch.cat([part[name] for part in parts.values()], axis)
    return torch.cat(
        [parts[n][name] if n in parts else whole.narrow(axis, n, 1) for n in range(len(trial.problem.lengths))], axis
    )


def check(trial: Trial) -> None:
    """Judge the packed call, and one call for each sequence in the packed call's place."""
    problem = trial.problem
    _, whole = solved(trial)
    trial.agree(whole)
    filled = [n for n, (start, stop) in enumerate(bounds(problem)) if stop > start]
    parts = {n: solved(trial, sequence(problem, trial.operator, n))[1].named() for n in filled}
    # A gradient that sums over the sequences is rounded once for each of them: it is judged in the packed call alone.
    names = [name for name in asked(problem) if {"T", "N"} & set(axes_of(trial.operator, name))]
    alone = {name: joined(trial, name, whole.named()[name], parts) for name in names}
    grads = {name.removeprefix("d"): x for name, x in alone.items() if name not in ("o", "state")}
    trial.agree(Result(o=alone["o"], state=alone.get("state"), grads=grads), results=names)


PROPERTY = Property(
    name="packed",
    law="Sequences packed with cu_seqlens give the outputs, states and gradients that each gives alone.",
    check=check,
    applies=lambda operator: "M19" in operator.identities,
    needs=frozenset({"packed"}),
    space=Space(packed=True, cotangents=("none", "both")),
    weight=1.5,
    why="A cumulative gate, a chunk grid or a state that runs on over the border lets one document read another; the "
    "loss hardly shows it.",
    against="borders of packed sequences",
)
