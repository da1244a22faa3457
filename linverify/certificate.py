"""The certificate of a reference: how far it is from the next rung of the ladder, in units of the budget's scale.

The chunkwise float64 reference is the fast path. Before it convicts a target, the stepwise one, which shares no line with it,
is asked the same question; of an operator that states its forms, another form is. Where the two differ by more than a
thousandth of the budget's scale the ladder is climbed: small cases are decided by mpmath, at 50 and at 80 digits; for larger
ones the second reference takes over.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linverify.budget import CERTIFICATE
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import highprecision, second
from linverify.reference.question import sizes_of

# Multiplications that mpmath does in a few seconds.
_SMALL = 20_000
DIGITS = (50, 80)


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What a reference is worth on one case.

    Attributes:
        bound: largest difference from the next rung, in units of the scale; the reference stands below `CERTIFICATE`.
        reference: the results to judge by, where the one that was asked about does not stand; None where it does.
        by: what was compared with: stepwise, another form, or mpmath.
    """

    bound: float
    reference: Mapping[str, Tensor] | None
    by: str


def certify(
    problem: Problem,
    operator: Operator,
    reference: Mapping[str, Tensor],
    scale: Mapping[str, Callable[[Tensor], Tensor]],
    device: torch.device,
) -> Certificate:
    """Compare a reference with the next rungs.

    Args:
        problem: what was asked.
        operator: its statement.
        reference: float64 results by name.
        scale: by result, a function that divides a difference by the budget's scale (results without one are not compared).
        device: of the reference.
    """
    other, by = second(problem, operator, device=device), "another form" if operator.forms else "stepwise"
    bound = _apart(reference, other, scale)
    if bound <= CERTIFICATE:
        return Certificate(bound, None, by)
    if _cost(problem, operator) > _SMALL or (operator.forms and problem.lengths):  # forms take dense problems there
        return Certificate(bound, other, by)
    few, many = (highprecision(problem, operator, digits=d) for d in DIGITS)
    exact = {n: _float64(t, device) for n, t in many.items()}
    coarse = {n: _float64(t, device) for n, t in few.items()}
    if _apart(coarse, exact, scale) > CERTIFICATE:  # the problem itself has no answer at this precision
        return Certificate(float("inf"), exact, "mpmath")
    return Certificate(_apart(reference, exact, scale), exact, "mpmath")


def _apart(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], scale: Mapping[str, Callable[[Tensor], Tensor]]
) -> float:
    found = [float(scale[n](first[n] - second[n]).abs().max()) for n in scale]
    return max(found, default=0.0)


def _cost(problem: Problem, operator: Operator) -> int:
    """Multiplications of one pass: tokens times heads times the size of a state, or the scores of all pairs."""
    sizes = sizes_of(problem, operator)
    K, V, T = sizes["K"], sizes.get("V", 1), sizes.get("T", 1)
    return sizes["B"] * T * sizes["H"] * (T * (K + V) if operator.forms else K * V)


def _float64(exact: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(np.vectorize(float, otypes=[float])(exact), dtype=torch.float64, device=device)


def bound_note(bounds: Sequence[float]) -> list[str]:
    """What a report says of the references that were held to the next rung; [] where none was."""
    if not bounds:
        return []
    held = f"{len(bounds)} reference{'s were' if len(bounds) > 1 else ' was'} held to a more precise one"
    return [f"{held}: off by at most {max(bounds):.1g} of the budget's scale"]
