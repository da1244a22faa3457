"""What the float64 oracles have in common: inputs as float64 leaves, folded rows, results under their names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.fold import Folding, Rows
from linverify.operator import Canonical, Operator
from linverify.problem import Problem

# Terms that an input may be as it is.
_PLAIN = ("q", "k", "v", "a", "b")


def sizes_of(problem: Problem, operator: Operator) -> dict[str, int]:
    """Axis letters to lengths, read off the tensors."""
    return operator.sizes_of({n: t.shape for n, t in problem.tensors.items()})


def state_shape(operator: Operator, problem: Problem) -> tuple[int, ...]:
    """Shape of initial and final state; () where the operator has none."""
    sizes = sizes_of(problem, operator)
    sizes["N"] = len(problem.lengths) or sizes["B"]
    return tuple(sizes[a] for a in operator.state_axes)


def leaves_of(problem: Problem, device: torch.device | str) -> dict[str, Tensor]:
    """Inputs (and "initial_state") in float64, requiring gradients where the problem asks for them."""
    given = dict(problem.tensors)
    if problem.initial_state is not None:
        given["initial_state"] = problem.initial_state
    return {n: _wide(t, device).detach().requires_grad_(n in problem.wrt) for n, t in given.items()}


def _wide(x: Tensor, device: torch.device | str) -> Tensor:
    """In float64, made on the device: what has to get there is a quarter as long in 16 bits."""
    return x.to(device).to(torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A problem in float64.

    Attributes:
        leaves: inputs (and "initial_state") by name, requiring gradients where the problem asks for them.
        folding: how tokens became rows.
        rows: the folded recurrence, connected to the leaves.
        scale: factor on o.
        do: cotangent of what was read, folded, or None; where the operator reads out, that of o as it came.
        dstate: folded cotangent of the final state, or None.
        plain: by input that is a term of the recurrence as it is, the term.
        seen: what a low-rank term's a read from the states [N, L, V], once the question is answered; None where there is none.
    """

    problem: Problem
    operator: Operator
    leaves: dict[str, Tensor]
    folding: Folding
    rows: Rows
    scale: float
    do: Tensor | None
    dstate: Tensor | None
    plain: Mapping[str, str]
    seen: Tensor | None = None

    def unstates(self, rows: Tensor) -> Tensor:
        """Final states, row by row, as the operator lays them out."""
        states = self.folding.unstates(rows)
        shape = state_shape(self.operator, self.problem)
        return states.reshape(*rows.shape[:-3], *shape) if shape else states

    def read(self, rows: Tensor, leaves: dict[str, Tensor] | None = None) -> Tensor:
        """What was read, row by row, as o."""
        o = self.folding.untokens(rows)
        if self.operator.readout is None:
            return o
        inputs = {n: t for n, t in (leaves or self.leaves).items() if n != "initial_state"}
        found: Tensor = self.operator.readout(o, inputs, sizes_of(self.problem, self.operator))
        return found


def pose(problem: Problem, operator: Operator, device: torch.device | str) -> Question:
    """Lift a problem to float64 on a device and fold it."""
    leaves = leaves_of(problem, device)
    sizes = sizes_of(problem, operator)
    canonical = _canonical(operator, leaves, sizes)
    folding, rows = _folded(problem, canonical, leaves, sizes)
    cot = {n: _wide(t, device) for n, t in problem.cotangents.items()}
    do = cot.get("o")
    return Question(
        problem=problem,
        operator=operator,
        leaves=leaves,
        folding=folding,
        rows=rows,
        scale=operator.scale_for(sizes) if problem.scale is None else problem.scale,
        do=do if do is None or operator.readout is not None else folding.tokens(do),
        dstate=folding.states(cot["state"], *rows.state.shape[1:]) if "state" in cot else None,
        plain={n: term for n, x in leaves.items() for term in _PLAIN if getattr(canonical, term) is x},
    )


def fold(problem: Problem, operator: Operator, leaves: dict[str, Tensor]) -> tuple[Folding, Rows]:
    """The recurrence of a problem's leaves, row by row."""
    sizes = sizes_of(problem, operator)
    return _folded(problem, _canonical(operator, leaves, sizes), leaves, sizes)


def _canonical(operator: Operator, leaves: dict[str, Tensor], sizes: dict[str, int]) -> Canonical:
    return operator.recurrence({n: t for n, t in leaves.items() if n != "initial_state"}, sizes)


def _folded(
    problem: Problem, canonical: Canonical, leaves: dict[str, Tensor], sizes: dict[str, int]
) -> tuple[Folding, Rows]:
    steps = canonical.v.shape[1] // sizes["T"]
    lengths = tuple(n * steps for n in problem.lengths)
    folding = Folding(sizes["B"], canonical.v.shape[1], canonical.v.shape[2], lengths)
    return folding, folding.rows(canonical, leaves.get("initial_state"))


def answer(
    question: Question, o: Tensor, state: Tensor, grads: Callable[[list[Tensor]], tuple[Tensor | None, ...]]
) -> dict[str, Tensor]:
    """Collect o [B, T, H, V], the state (unfolded here) and gradients under the names o, state, d<input>."""
    results = {"o": o.detach()}
    if question.problem.final_state:
        results["state"] = question.unstates(state.detach())
    if question.problem.cotangents:
        wanted = list(question.problem.wrt)
        leaves = [question.leaves[n] for n in wanted]
        for name, leaf, grad in zip(wanted, leaves, grads(leaves), strict=True):
            results[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad.detach()
    return results
