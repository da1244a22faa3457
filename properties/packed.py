"""Packed: sequences joined end to end are computed as if each were alone."""

from collections.abc import Sequence
from functools import partial

import torch

from linverify.properties._problems import asked, axes_of, bounds, sequence
from linverify.properties._results import Part, equal_within_budget, letters, solved
from linverify.property import Property, Space, Tensors, Trial


def joined(trial: Trial, name: str, parts: Sequence[Tensors]) -> torch.Tensor:
    """Results of the sequences put together as the packed call would give them."""
    axes = axes_of(trial.operator, name)
    for axis in ("T", "N"):
        if axis in axes:
            return torch.cat([part[name] for part in parts], axes.index(axis))
    # An input without a time axis serves all sequences, and its gradient sums over them.
    return torch.stack([part[name] for part in parts]).sum(0)


def views(
    trial: Trial, name: str, filled: Sequence[int], found: Sequence[Tensors]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A result of the packed call, without the states of empty sequences, and the same from separate calls."""
    packed, *separate = found
    axes = axes_of(trial.operator, name)
    whole = packed[name]
    if "N" in axes:
        whole = whole[torch.tensor(filled, device=whole.device)]
    return whole, joined(trial, name, separate)


def check(trial: Trial) -> None:
    """Judge the packed call, and compare it with one call for each sequence."""
    problem = trial.problem
    whole = solved(trial)
    trial.agree(whole[1])
    filled = [n for n, (start, stop) in enumerate(bounds(problem)) if stop > start]
    parts: list[Part] = [whole, *(solved(trial, sequence(problem, trial.operator, n)) for n in filled)]
    for name in asked(problem):
        what = f"{name} of packed sequences and of each alone"
        equal_within_budget(trial, what, parts, partial(views, trial, name, filled), letters(trial, name))


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
)
