"""What the float64 oracles have in common: inputs as float64 leaves, folded rows, results under their names."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.fold import Folding, Rows
from linverify.operator import Operator
from linverify.problem import Problem


def sizes_of(problem: Problem, operator: Operator) -> dict[str, int]:
    """Axis letters to lengths, read off the tensors."""
    sizes = {a: n for i in operator.inputs for a, n in zip(i.axes, problem.tensors[i.name].shape, strict=True)}
    sizes["V"] = problem.tensors[operator.value_name].shape[-1]
    sizes["H"] = problem.tensors[operator.value_name].shape[2]
    sizes["K"] = problem.tensors[(operator.of_kind("query"))[0].name].shape[-1]
    sizes.setdefault("G", sizes["H"])
    return sizes


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A problem in float64.

    Attributes:
        leaves: inputs (and "initial_state") by name, requiring gradients where the problem asks for them.
        folding: how tokens became rows.
        rows: the folded recurrence, connected to the leaves.
        scale: factor on o.
        do, dstate: folded cotangents, or None.
    """

    problem: Problem
    leaves: dict[str, Tensor]
    folding: Folding
    rows: Rows
    scale: float
    do: Tensor | None
    dstate: Tensor | None


def pose(problem: Problem, operator: Operator, device: torch.device | str) -> Question:
    """Lift a problem to float64 on a device and fold it."""
    sizes = sizes_of(problem, operator)
    given = dict(problem.tensors)
    if problem.initial_state is not None:
        given["initial_state"] = problem.initial_state
    leaves = {
        n: t.to(device=device, dtype=torch.float64).detach().requires_grad_(n in problem.wrt) for n, t in given.items()
    }
    folding = Folding(sizes["B"], sizes["T"], sizes["H"], problem.lengths)
    canonical = operator.canonical({n: t for n, t in leaves.items() if n != "initial_state"}, sizes)
    rows = folding.rows(canonical, leaves.get("initial_state"))
    cot = {n: t.to(device=device, dtype=torch.float64) for n, t in problem.cotangents.items()}
    return Question(
        problem=problem,
        leaves=leaves,
        folding=folding,
        rows=rows,
        scale=operator.scale_for(sizes) if problem.scale is None else problem.scale,
        do=folding.tokens(cot["o"]) if "o" in cot else None,
        dstate=folding.states(cot["state"]) if "state" in cot else None,
    )


def answer(
    question: Question, o: Tensor, state: Tensor, grads: Callable[[list[Tensor]], tuple[Tensor | None, ...]]
) -> dict[str, Tensor]:
    """Unfold o and the state and collect gradients under the names o, state, d<input>."""
    results = {"o": question.folding.untokens(o.detach())}
    if question.problem.final_state:
        results["state"] = question.folding.unstates(state.detach())
    if question.problem.cotangents:
        wanted = list(question.problem.wrt)
        leaves = [question.leaves[n] for n in wanted]
        for name, leaf, grad in zip(wanted, leaves, grads(leaves), strict=True):
            results[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad.detach()
    return results
