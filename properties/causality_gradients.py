"""Causality of gradients: nothing after the last output that counts gets a gradient.

The transpose of law M4: with upstream gradients up to token t only, inputs after t have gradient zero: exactly for
queries, keys, values and low-rank terms; up to rounding for gates and strengths, which a form may obtain as differences of
sums. A sum of T terms in float32 is off by at most a rounding of each of its partial sums, none of which is more than twice
the largest gradient of that channel; the difference of two such sums is zero up to T times 2^-24 of four times that, and all
tokens share what is left. What is more is held to the budget.
"""

from collections.abc import Sequence

import torch

from linverify.properties._problems import axes_of, length_of
from linverify.properties._results import choose, equal_bits, equal_within_budget, letters, solved
from linverify.properties._spaces import CALM_GATES, SHORT
from linverify.property import Property, Space, Tensors, Trial

_EXACT = ("query", "key", "value", "low_rank_a", "low_rank_b")


def check(trial: Trial) -> None:
    """Clear the upstream gradient after a random token and look at the gradients there."""
    problem, operator = trial.problem, trial.operator
    T = length_of(problem, operator, "T")
    stop = choose(trial, "stop", 1, T)

    def after(name: str) -> tuple[int, int, int]:
        """Axis, start and length of what a result has after the last output that counts."""
        return axes_of(operator, name).index("T"), stop, T - stop

    upstream = problem.cotangents["o"].clone()
    upstream.narrow(*after("o")).zero_()
    parts = [solved(trial, problem.with_(cotangents={"o": upstream}))]
    for i in operator.inputs:
        if i.name not in problem.wrt or "T" not in axes_of(operator, i.name):
            continue
        name = f"d{i.name}"

        def views(found: Sequence[Tensors], name: str = name) -> tuple[torch.Tensor, torch.Tensor]:
            later = found[0][name].narrow(*after(name))
            return later, later * 0

        if i.kind not in _EXACT and _nothing(parts[0][1].named()[name], *after(name)):
            continue
        judge = equal_bits if i.kind in _EXACT else equal_within_budget
        judge(trial, f"{name} after token {stop - 1} and zero", parts, views, letters(trial, name))


def _nothing(gradient: torch.Tensor, time: int, start: int, count: int) -> bool:
    """Whether a gradient is zero from a token on, as far as differences of float32 sums can be."""
    size = gradient.double().abs()
    bound = 2 * torch.finfo(torch.float32).eps * gradient.shape[time] * size.amax(time, keepdim=True)
    return bool((size.narrow(time, start, count) <= bound).all())


PROPERTY = Property(
    name="causality_gradients",
    law="Inputs after the last output that has an upstream gradient get gradient zero.",
    check=check,
    applies=lambda operator: "M4" in operator.identities,
    needs=frozenset({"gradients"}),
    space=Space(max_T=SHORT, min_T=2, cotangents=("o",), gates=CALM_GATES),
    why="A backward mask that is off by one trains on the future, even where the forward mask is right.",
    against="a backward mask that is off",
)
