"""References: the ladder of oracles. Written apart from every working-precision form and from the error model.

mpmath (small cases, two precisions) certifies the stepwise float64 recurrence with its hand-written adjoint, which certifies
the chunkwise float64 form, the fast path.
"""

import torch
from torch import Tensor

from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference.chunkwise import chunkwise as chunkwise
from linverify.reference.highprecision import highprecision as highprecision
from linverify.reference.stated import stated as stated
from linverify.reference.stepwise import stepwise as stepwise

__all__ = ["chunkwise", "highprecision", "second", "solve", "stated", "stepwise"]


def solve(problem: Problem, operator: Operator, *, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The fast float64 reference of any operator: chunks of a recurrence, the definition of what states its forms.

    Shapes: o as the operator says; state [N, H, K, V]; gradients as their inputs.
    """
    return (stated if operator.forms else chunkwise)(problem, operator, device=device)


def second(problem: Problem, operator: Operator, *, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A float64 oracle apart from `solve`: step by step, or by the last of the stated forms."""
    if operator.forms:
        return stated(problem, operator, device=device, form=operator.form_names[-1])
    return stepwise(problem, operator, device=device)
