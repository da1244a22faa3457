"""Sums that gradient identities compare: inputs times their gradients, by token and head, and sums over later tokens."""

import torch

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.properties._problems import axes_of, length_of
from linverify.property import Tensors


def gates_the_state_alone(operator: Operator) -> bool:
    """Whether a gate acts on the state and nowhere else (law G6, or G5 where a step size sets it)."""
    return operator.gated and bool({"G5", "G6"} & operator.identities)


def weighted(problem: Problem, found: Tensors, name: str) -> torch.Tensor:
    """An input times its gradient, element by element."""
    gradient = found[f"d{name}"]
    return problem.tensors[name].to(gradient) * gradient


def paired(problem: Problem, found: Tensors, name: str) -> torch.Tensor:
    """An input's inner product with its gradient over the features: [B, T, H] (or groups for heads)."""
    return weighted(problem, found, name).sum(-1)


def outputs(problem: Problem, found: Tensors) -> torch.Tensor:
    """The product o . do for each token and head: [B, T, H]; zero where nothing comes back to o."""
    o = found["o"]
    upstream = problem.cotangents.get("o")
    return (o * 0 if upstream is None else o * upstream.to(o)).sum(-1)


def final_states(problem: Problem, found: Tensors, operator: Operator) -> torch.Tensor | float:
    """rowsum(S_T * dS_T): [N, H, K]; 0 where nothing comes back to the final state."""
    upstream = problem.cotangents.get("state")
    if upstream is None:
        return 0.0
    state = found["state"]
    return (state * upstream.to(state)).sum(operator.state_axes.index("V"))


def initial_states(problem: Problem, found: Tensors, operator: Operator) -> torch.Tensor | float:
    """rowsum(S_0 * dS_0): [N, H, K]; 0 where there is no initial state."""
    state = problem.initial_state
    if state is None:
        return 0.0
    gradient = found["dinitial_state"]
    return (state.to(gradient) * gradient).sum(operator.state_axes.index("V"))


def by_group(x: torch.Tensor, problem: Problem, operator: Operator, name: str, axis: int) -> torch.Tensor:
    """Sum heads that share the input `name`; as it was where nothing is shared."""
    if "G" not in axes_of(operator, name):
        return x
    groups = length_of(problem, operator, "G")
    return x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :]).sum(axis + 1)


def suffix_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums over this token and all later ones, time being axis 1."""
    return x.flip(1).cumsum(1).flip(1)


def later_sums(x: torch.Tensor) -> torch.Tensor:
    """Sums over all later tokens, time being axis 1."""
    return torch.cat((suffix_sums(x)[:, 1:], torch.zeros_like(x[:, :1])), 1)
