"""Attribution: which rounding points the error of a result comes from.

The energy law: the variance of the error is the sum of the variances that each rounding stage leaves alone (Higham and Mary,
SIAM J. Sci. Comput. 41 (2019), A2815, model relative errors as independent; here stages are run one at a time). So a few
realisations of the recipe with one stage switched on give its share; what the measured error has beyond their sum is not
explained.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.budget import output_variance
from linverify.dtype import format_of
from linverify.ensemble import staged
from linverify.insight import Attribution
from linverify.operator import GATE_KINDS, Operator
from linverify.recipe import Recipe
from linverify.score import Answer

STAGES: dict[str, frozenset[str]] = {
    "input": frozenset({"input", "operands", "scaled_query"}),
    "gates": frozenset({"gate", "gates", "decay", "sum"}),
    "scores": frozenset({"scores", "blocks", "backward_scores"}),
    "decayed operands": frozenset({"query", "key", "folded_query", "folded_key", "cotangents"}),
    "values": frozenset({"value"}),
    "state": frozenset({"state", "state_cotangent", "carry"}),
    "triangular inverse": frozenset({"inverse", "merge", "w", "u", "strong_key", "partials", "key_partials"}),
    "accumulation": frozenset({"accumulation", "dot"}),
}
OUTPUT = "output"
_COPIES = 3
# An error this many times the expected one has a part that rounding does not explain; chance and the coarse model explain less.
_BEYOND = 4.0


@dataclass(frozen=True, slots=True)
class Stages:
    """Mean squared errors of one case.

    Attributes:
        energy: result to stage to mean squared error, output rounding left out.
    """

    energy: Mapping[str, Mapping[str, float]]


def stages(operator: Operator, answer: Answer, recipe: Recipe) -> Stages:
    """Run a recipe on a case with one stage switched on at a time."""
    gates = tuple(i.name for i in operator.of_kind(*GATE_KINDS) if i.name in answer.problem.wrt)
    energy: dict[str, dict[str, float]] = {}
    for name, points in STAGES.items():
        generator = torch.Generator(device=answer.recurrence.rows.q.device).manual_seed(1)
        found = staged(answer.recurrence, recipe, gates, points, generator, _COPIES)
        for result, values in found.items():
            e = (values - answer.reference[result]).square().mean()
            energy.setdefault(result, {})[name] = float(e) if bool(torch.isfinite(e)) else math.inf
    return Stages(energy)


def attribute(
    found: Stages, answer: Answer, result: str, value: Tensor, case_id: str, dtype: str
) -> Attribution | None:
    """The waterfall of one result; None where no stage errs or nothing is finite.

    Args:
        found: stages of the case.
        answer: its reference.
        result: name.
        value: what the target gave.
        case_id: of the case.
        dtype: of the case.
    """
    ref = answer.reference[result]
    parts = {
        **found.energy[result],
        OUTPUT: float(output_variance(ref, format_of(value.dtype)).mean()),
    }
    total = sum(parts.values())
    measured = float((value.to(ref.device, torch.float64) - ref).square().mean())
    if not (0 < total < math.inf) or not math.isfinite(measured):
        return None
    shares = {n: e / total for n, e in parts.items()}
    unexplained = max(0.0, 1.0 - total / measured) if measured > _BEYOND * total else 0.0
    size = float(ref.square().mean().sqrt())
    return Attribution(
        result=result,
        dtype=dtype,
        case_id=case_id,
        shares=shares,
        unexplained=unexplained,
        sentence=_sentence(
            result, shares, unexplained, math.sqrt(measured), size, format_of(value.dtype).unit_roundoff
        ),
    )


def _sentence(
    result: str, shares: Mapping[str, float], unexplained: float, error: float, size: float, unit: float
) -> str:
    first, *others = sorted(shares, key=lambda n: -shares[n])
    text = f"{shares[first]:.0%} of what rounding leaves in {result} comes from {_NAMES[first]}"
    second = next((n for n in others if shares[n] > 0.15), None)
    if second:
        text += f", {shares[second]:.0%} from {_NAMES[second]}"
    if unexplained:
        return f"{text}; but {unexplained:.0%} of the measured error is explained by none of them"
    lost = math.log10(error / size / unit) if error > 0 and size > 0 else 0.0
    if lost > 1 and first != OUTPUT:
        where = " of its sum over later tokens" if result in ("dg", "dw") and first in ("state", "accumulation") else ""
        text += f"; {result} loses {lost:.1f} digits against one rounding, most in {_NAMES[first]}{where}"
    return text


_NAMES = {
    "input": "operands as products read them",
    "gates": "gates and their exponentials",
    "scores": "scores",
    "decayed operands": "decayed queries and keys",
    "values": "values before they are written",
    "state": "the stored state and its gradient",
    "triangular inverse": "the triangular inverse and what it solves",
    "accumulation": "float32 accumulation",
    OUTPUT: "rounding the result itself",
}
