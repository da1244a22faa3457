"""Independence of parts that share nothing: computed alone, or in another order, they give the same."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from linverify.properties._problems import Axes, asked, axes_of, select, taken
from linverify.properties._results import Part, choose, equal_within_budget, letters, solved
from linverify.property import Tensors, Trial

Index = Mapping[str, Sequence[int]]


def _views(name: str, axes: Axes, index: Index, found: Sequence[Tensors]) -> tuple[torch.Tensor, torch.Tensor]:
    return select(found[0][name], axes, index), found[1][name]


def compare(trial: Trial, what: str, parts: Sequence[Part], names: Sequence[str], index: Index) -> None:
    """Raise unless the results of the second part are those of the first at the places of an index."""
    for name in names:
        axes = axes_of(trial.operator, name)
        equal_within_budget(trial, f"{name} {what}", parts, partial(_views, name, axes, index), letters(trial, name))


def alone_and_permuted(trial: Trial, word: str, count: int, index_of: Callable[[Sequence[int]], Index]) -> None:
    """Raise unless parts give the same in another order, and one of them alone.

    Args:
        trial: of a dense case.
        word: what the parts are called, in the plural.
        count: number of parts.
        index_of: maps part numbers to their places by axis.
    """
    whole = solved(trial)
    names = asked(trial.problem)
    turn = choose(trial, "turn", 1, count)
    order = index_of([(n + turn) % count for n in range(count)])
    compare(
        trial,
        f"of {word} in another order",
        (whole, solved(trial, taken(trial.problem, trial.operator, order))),
        names,
        order,
    )
    one = index_of([choose(trial, "one", 0, count)])
    # A gradient that sums over the parts says nothing about one of them.
    own = [name for name in names if set(axes_of(trial.operator, name)) & set(one)]
    compare(
        trial,
        f"of one of the {word} alone",
        (whole, solved(trial, taken(trial.problem, trial.operator, one))),
        own,
        one,
    )
