"""Containment: NaN or infinity in one row, head or packed sequence stays there."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from linverify.operator import Operator
from linverify.problem import Problem, Result
from linverify.properties._problems import asked, axes_of, head_groups, heads, length_of, packed_index, rows
from linverify.properties._results import choose, solved
from linverify.properties._spaces import CALM, CALM_GATES, SHORT
from linverify.property import Property, Space, Trial

_POISON = (float("nan"), float("inf"), float("-inf"))
Index = Mapping[str, Sequence[int]]


def compartments(problem: Problem, operator: Operator) -> list[tuple[str, int]]:
    """Kinds of compartments that the problem has more than one of, with their number."""
    counts = {
        "head": 1 if operator.coupled_heads else len(head_groups(problem, operator)),
        "row": length_of(problem, operator, "B"),
        "sequence": len(problem.lengths),
    }
    return [(kind, n) for kind, n in counts.items() if n > 1]


def places(problem: Problem, operator: Operator, kind: str, number: int) -> Index:
    """Where one compartment lies, by axis; heads that share an input are one."""
    if kind == "head":
        return heads(problem, operator, [number])
    return rows([number]) if kind == "row" else packed_index(problem, [number])


def inside(x: torch.Tensor, axes: Sequence[str], index: Index) -> torch.Tensor:
    """Which elements of `x` lie at the listed places of every listed axis that it has."""
    found = torch.ones_like(x, dtype=torch.bool)
    for axis, listed in index.items():
        if axis in axes:
            along = torch.zeros(x.shape[axes.index(axis)], dtype=torch.bool)
            along[list(listed)] = True
            found &= along.view([-1 if a == axis else 1 for a in axes])
    return found


def poisoned(trial: Trial, index: Index) -> Iterator[Problem]:
    """Problems with NaN or infinity inside one compartment: at one token of each input in turn, and in the initial state."""
    problem, operator = trial.problem, trial.operator
    state = problem.initial_state
    if state is not None:
        value = _POISON[choose(trial, "initial_state", 0, len(_POISON))]
        yield problem.with_(initial_state=state.masked_fill(inside(state, operator.state_axes, index), value))
    tokens = list(index.get("T", range(length_of(problem, operator, "T"))))
    for name, x in problem.tensors.items():
        axes = axes_of(operator, name)
        if tokens and set(axes) & set(index):  # an empty packed sequence has no token to put it in
            value = _POISON[choose(trial, name, 0, len(_POISON))]
            token = tokens[choose(trial, f"token of {name}", 0, len(tokens))]
            yield problem.with_tensors(**{name: x.masked_fill(inside(x, axes, {**index, "T": [token]}), value)})


def outside_only(trial: Trial, result: Result, index: Index) -> tuple[Result, tuple[str, ...]]:
    """Replace the compartment's own part of every result by what is right for the unpoisoned problem.

    Returns the result and the names of those that are split by compartments; a gradient that sums over them is left out.
    """
    right = trial.reference(trial.problem)
    found = result.named()
    kept: dict[str, torch.Tensor] = {}
    for name in asked(trial.problem):
        axes = axes_of(trial.operator, name)
        if set(axes) & set(index):
            own = inside(found[name], axes, index)
            kept[name] = torch.where(own, right[name].to(found[name]), found[name])
    grads = {name.removeprefix("d"): x for name, x in kept.items() if name not in ("o", "state")}
    return Result(o=kept.get("o"), state=kept.get("state"), grads=grads), tuple(kept)


def check(trial: Trial) -> None:
    """Poison one compartment and judge what the others give."""
    problem, operator = trial.problem, trial.operator
    kinds = compartments(problem, operator)
    if not kinds:
        trial.agree(trial.solve())
        return
    kind, count = kinds[choose(trial, "kind", 0, len(kinds))]
    index = places(problem, operator, kind, choose(trial, "victim", 0, count))
    for bad in poisoned(trial, index):
        _, result = solved(trial, bad)
        others, names = outside_only(trial, result, index)
        trial.agree(others, problem, results=names)


PROPERTY = Property(
    name="containment",
    law="NaN or infinity in one batch row, head or packed sequence never reaches the results of another.",
    check=check,
    space=Space(max_T=SHORT, min_H=2, packed=None, cotangents=("none", "both"), regimes=CALM, gates=CALM_GATES),
    weight=1.5,
    why="Masked terms that are multiplied by zero instead of left out carry one request's NaN into every other request "
    "of the batch.",
    against="masked terms multiplied by zero",
)
