"""The float64 reference of an operator that states its forms: its definition, with gradients by automatic differentiation.

The other forms check it (a test compares all of them, and mpmath).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from linverify.operator import Inputs, Operator
from linverify.problem import Problem
from linverify.reference.question import leaves_of, sizes_of


@dataclass(frozen=True, slots=True, eq=False)
class StatedQuestion:
    """A problem in float64 whose operator states its forms.

    Attributes:
        leaves: inputs by name, requiring gradients where the problem asks for them.
        do: cotangent of o, or None.
    """

    problem: Problem
    operator: Operator
    leaves: dict[str, Tensor]
    do: Tensor | None


def pose_stated(problem: Problem, operator: Operator, device: torch.device | str) -> StatedQuestion:
    """Lift a problem to float64 on a device."""
    do = problem.cotangents.get("o")
    return StatedQuestion(
        problem, operator, leaves_of(problem, device), None if do is None else do.to(device, torch.float64)
    )


def evaluate(operator: Operator, form: str, inputs: Inputs, problem: Problem) -> Tensor:
    """O as one of the stated forms computes it, in the arithmetic of `inputs`; packed sequences one by one."""
    sizes = sizes_of(problem, operator)
    scale = operator.scale_for(sizes) if problem.scale is None else problem.scale
    run = operator.forms[form]
    if not problem.lengths:
        found: Tensor = run(inputs, sizes, scale)
        return found
    ends = torch.tensor([0, *problem.lengths]).cumsum(0).tolist()
    parts = [
        run(_between(operator, inputs, start, stop), {**sizes, "T": stop - start}, scale)
        for start, stop in pairwise(ends)
        if stop > start
    ]
    return torch.cat(parts, operator.o_axes.index("T"))


def _between(operator: Operator, inputs: Inputs, start: int, stop: int) -> Mapping[str, Tensor]:
    timed = {i.name: i.axes.index("T") for i in operator.inputs if "T" in i.axes}
    return {n: x.narrow(timed[n], start, stop - start) if n in timed else x for n, x in inputs.items()}


def stated(
    problem: Problem, operator: Operator, *, device: torch.device | str = "cpu", form: str | None = None
) -> dict[str, Tensor]:
    """Compute o and d<input> of a problem in float64 by the definition, or by another stated form.

    Shapes: o as the operator says; gradients as their inputs.
    """
    question = pose_stated(problem, operator, device)
    with torch.set_grad_enabled(question.do is not None):
        o = evaluate(operator, form or operator.form_names[0], question.leaves, problem)
    found = {"o": o.detach()}
    if question.do is None:
        return found
    leaves = [question.leaves[n] for n in problem.wrt]
    grads: Sequence[Tensor | None] = torch.autograd.grad(o, leaves, question.do, allow_unused=True)
    named = zip(problem.wrt, leaves, grads, strict=True)
    return found | {f"d{n}": torch.zeros_like(x) if g is None else g for n, x, g in named}
