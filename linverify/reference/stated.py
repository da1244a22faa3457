"""The float64 reference of an operator that states its forms: its definition, with gradients by automatic differentiation.

The other forms check it (a test compares all of them, and mpmath).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from linverify.operator import Inputs, Operator
from linverify.problem import Problem
from linverify.reference.question import leaves_of, sizes_of, state_shape


@dataclass(frozen=True, slots=True, eq=False)
class StatedQuestion:
    """A problem in float64 whose operator states its forms.

    Attributes:
        leaves: inputs (and "initial_state") by name, requiring gradients where the problem asks for them.
    """

    problem: Problem
    operator: Operator
    leaves: dict[str, Tensor]


def pose_stated(problem: Problem, operator: Operator, device: torch.device | str) -> StatedQuestion:
    """Lift a problem to float64 on a device."""
    return StatedQuestion(problem, operator, leaves_of(problem, device))


def evaluate(operator: Operator, form: str, inputs: Inputs, problem: Problem) -> dict[str, Tensor]:
    """O, and the final state where it is asked for, as one of the stated forms computes them; packed sequences one by one."""
    sizes = sizes_of(problem, operator)
    scale = operator.scale_for(sizes) if problem.scale is None else problem.scale
    parts: list[tuple[Any, Any]] = []
    if not problem.lengths:
        parts = [operator.stated(form, inputs, sizes, scale, final_state=problem.final_state)]
    else:
        ends = torch.tensor([0, *problem.lengths]).cumsum(0).tolist()
        for n, (start, stop) in enumerate(pairwise(ends)):
            if stop == start:
                parts.append((None, _untouched(operator, inputs, n, problem)))
                continue
            own = _between(operator, inputs, n, start, stop)
            parts.append(
                operator.stated(form, own, {**sizes, "T": stop - start}, scale, final_state=problem.final_state)
            )
    found = {"o": torch.cat([o for o, _ in parts if o is not None], operator.o_axes.index("T"))}
    return {**found, "state": torch.cat([state for _, state in parts])} if problem.final_state else found


def _untouched(operator: Operator, inputs: Inputs, n: int, problem: Problem) -> Tensor | None:
    """The state of an empty sequence: the one it started from."""
    if "initial_state" in inputs or not operator.state_axes:
        return inputs["initial_state"][n : n + 1] if "initial_state" in inputs else None
    zero: Tensor = inputs[operator.value_name].new_zeros((1, *state_shape(operator, problem)[1:]))
    return zero if operator.blank_state is None else operator.blank_state(zero)


def _between(operator: Operator, inputs: Inputs, number: int, start: int, stop: int) -> Mapping[str, Tensor]:
    timed = {i.name: i.axes.index("T") for i in operator.inputs if "T" in i.axes}
    found = {n: x.narrow(timed[n], start, stop - start) if n in timed else x for n, x in inputs.items()}
    if "initial_state" in inputs:
        found["initial_state"] = inputs["initial_state"][number : number + 1]
    return found


def stated(
    problem: Problem, operator: Operator, *, device: torch.device | str = "cpu", form: str | None = None
) -> dict[str, Tensor]:
    """Compute o, state and d<input> of a problem in float64 by the definition, or by another stated form.

    Shapes: o and state as the operator says; gradients as their inputs.
    """
    question = pose_stated(problem, operator, device)
    upstream = {n: c.to(device, torch.float64) for n, c in problem.cotangents.items()}
    with torch.set_grad_enabled(bool(upstream)):
        results = evaluate(operator, form or operator.form_names[0], question.leaves, problem)
    found = {n: t.detach() for n, t in results.items()}
    leaves = [question.leaves[n] for n in problem.wrt]
    asked = [(results[n], c) for n, c in upstream.items() if results[n].requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if asked:
        grads = torch.autograd.grad([y for y, _ in asked], leaves, [c for _, c in asked], allow_unused=True)
    named = zip(problem.wrt, leaves, grads, strict=True)
    return found | {f"d{n}": torch.zeros_like(x) if g is None else g for n, x, g in named}
