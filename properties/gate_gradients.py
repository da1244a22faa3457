"""Gate gradients in cumulative form: what later tokens read, less what they write, plus what is left at the end.

Dividing every state by its decay so far moves all gates onto the readers and writers, so the gradient of a log gate
is a sum over the tokens from it on (law G3 and its forms for other steps):

    diagonal gate          dg_t = sum_{s>=t} (q dq - k dk)_s + rowsum(S_T dS_T)
    exclusive read         the same, reads from s > t, dq and dk without the bonus
    with a, b terms        also + a da from s > t, - b db from s >= t
    delta rule             summed over channels, v . dv in the place of k . dk
    step size dt, rate A   dt ddt_t = dt A dg_t + x . dx, dA = sum dt dg, with o . do and x . dx for q . dq and k . dk

Sources: Yang et al. 2023, arXiv:2312.06635, section 4.2, for the first; the others follow by the same substitution.
"""

from collections.abc import Sequence

import torch

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._balances import (
    final_states,
    gates_the_state_alone,
    later_sums,
    outputs,
    paired,
    suffix_sums,
    weighted,
)
from linverify.properties._problems import axes_of
from linverify.properties._results import Part, letters, solved
from linverify.properties._spaces import BACKWARD
from linverify.property import Property, Space, Tensors, Trial


def by_channel(problem: Problem, found: Tensors, operator: Operator) -> torch.Tensor:
    """Gradient of a gate [B, T, H, K] from the other gradients of a run without bonus."""
    query, key = operator.of_kind("query")[0].name, operator.of_kind("key")[0].name
    # A bonus is given only to a read that comes before the write.
    reads = (later_sums if operator.of_kind("bonus") else suffix_sums)(weighted(problem, found, query))
    total = reads - suffix_sums(weighted(problem, found, key))
    for i in operator.of_kind("low_rank_a"):
        total = total + later_sums(weighted(problem, found, i.name))
    for i in operator.of_kind("low_rank_b"):
        total = total - suffix_sums(weighted(problem, found, i.name))
    states = final_states(problem, found, operator)
    return total + (states.unsqueeze(1) if isinstance(states, torch.Tensor) else states)


def by_head(problem: Problem, found: Tensors, operator: Operator) -> torch.Tensor:
    """The gradient [B, T, H] of a gate common to all channels, from the balance of a linear map over the tokens from t on."""
    values = paired(problem, found, operator.value_name)
    axes = axes_of(operator, operator.value_name)
    values = values.sum(axes.index("S")) if "S" in axes else values
    total = suffix_sums(outputs(problem, found) - values)
    states = final_states(problem, found, operator)
    return total + (states.sum(-1).unsqueeze(1) if isinstance(states, torch.Tensor) else states)


def step_size(trial: Trial, part: Part) -> None:
    """Compare ddt and dA with the cumulative form."""
    problem, operator = part[0], trial.operator
    step, rate = operator.of_kind("step_size")[0].name, operator.of_kind("log_rate")[0].name

    def of_step(found: Sequence[Tensors]) -> torch.Tensor:
        gate = by_head(problem, found[0], operator)
        through_value = paired(problem, found[0], operator.value_name)
        through_decay = problem.tensors[step].to(gate) * problem.tensors[rate].to(gate) * gate
        return weighted(problem, found[0], step) - through_decay - through_value

    def of_rate(found: Sequence[Tensors]) -> torch.Tensor:
        gate = by_head(problem, found[0], operator)
        return found[0][f"d{rate}"] - (problem.tensors[step].to(gate) * gate).sum((0, 1))

    trial.relate(f"{step} d{step} and its cumulative form", [part], of_step, "bth")
    trial.relate(f"d{rate} and its cumulative form", [part], of_rate, "h")


def log_gate(trial: Trial, part: Part) -> None:
    """Compare the gradient of a log gate with the cumulative form."""
    problem, operator = part[0], trial.operator
    gate = operator.of_kind("log_gate")[0]
    channels = "K" in gate.axes
    bonus = {i.name: torch.zeros_like(problem.tensors[i.name]) for i in operator.of_kind("bonus")}
    # The gate's gradient does not see the bonus, the others do: they come from a run without one.
    parts = [part, solved(trial, problem.with_tensors(**bonus))] if bonus else [part]

    def residual(found: Sequence[Tensors]) -> torch.Tensor:
        gradient = found[0][f"d{gate.name}"]
        if channels and "G3" in operator.identities:
            return gradient - by_channel(problem, found[-1], operator)
        return (gradient.sum(-1) if channels else gradient) - by_head(problem, found[-1], operator)

    axes = letters(trial, f"d{gate.name}") if "G3" in operator.identities else "bth"
    trial.relate(f"d{gate.name} and its cumulative form", parts, residual, axes)


def check(trial: Trial) -> None:
    """Compare the gate's gradient with its cumulative form."""
    (log_gate if trial.operator.of_kind("log_gate") else step_size)(trial, solved(trial))


PROPERTY = Property(
    name="gate_gradients",
    law="The gradient of a gate equals the sum of what later tokens read and write, plus the final state's share.",
    check=check,
    applies=lambda operator: {"M1", "M2"} <= operator.identities and gates_the_state_alone(operator),
    needs=frozenset({"gradients"}),
    space=Space(cotangents=BACKWARD),
    why="Gate gradients are assembled from other kernels' results: a share deposited on a row that is masked away, a "
    "missing final state or an index off by one trains the gate wrongly while everything else is right.",
    against="a backward pass that is not the derivative of the forward as it runs",
)
