"""Growth: the error against T, its slope, and the slope that the recipe predicts.

Rounding that is made anew in every chunk from a float32 state leaves a relative error that does not depend on T (slope 0 of log
error against log T). Rounding inside the carried state is a random walk where nothing decays: slope 1/2, and 1 where it is
biased. So the ladder runs without decay, and a slope whose 95 % interval lies above the recipe's own is named a drift.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.dtype import format_of, round_to
from linverify.ensemble import simulated
from linverify.insight import Growth
from linverify.operator import GATE_KINDS, Operator
from linverify.recipe import Recipe
from linverify.score import Answer

# Two-sided 95 % quantiles of Student's t with 1, 2 ... degrees of freedom; the last one serves all beyond.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
# A relative error of one percent leaves two significant digits: less is of no use to a layer that trains.
USEFUL = 0.01
# Slopes nearer than this are one law: between 0 and 1/2 there is none.
_APART = 0.125
FEWEST = 4


@dataclass(frozen=True, slots=True)
class Rung:
    """Relative root mean square errors at one T: of the target, and of the recipe really rounded."""

    T: int
    target: Mapping[str, float]
    recipe: Mapping[str, float]


def rung(operator: Operator, answer: Answer, results: Mapping[str, Tensor], recipe: Recipe, T: int) -> Rung:
    """Measure one T."""
    gates = tuple(i.name for i in operator.of_kind(*GATE_KINDS) if i.name in answer.problem.wrt)
    model = simulated(answer.recurrence, recipe, gates)[0]
    target, expected = {}, {}
    for name in results.keys() & answer.reference.keys():
        ref = answer.reference[name]
        size = float(ref.square().mean().sqrt())
        if size > 0:
            target[name] = float((results[name].to(ref.device, torch.float64) - ref).square().mean().sqrt()) / size
            rounded = round_to(model[name], format_of(results[name].dtype))
            expected[name] = float((rounded - ref).square().mean().sqrt()) / size
    return Rung(T, target, expected)


def fitted(lengths: Sequence[float], errors: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log error against log T by least squares, with its 95 % interval."""
    x = [math.log(n) for n in lengths]
    y = [math.log(e) for e in errors]
    n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mx) ** 2 for a in x)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    half = _STUDENT[min(n - 2, len(_STUDENT)) - 1] * math.sqrt(left / (n - 2) / spread)
    return slope, slope - half, slope + half


def growth(rungs: Sequence[Rung], result: str, dtype: str) -> Growth | None:
    """The law of one result; None where there are too few lengths, or errors of zero."""
    lengths = tuple(r.T for r in rungs if r.target.get(result, 0.0) > 0 and r.recipe.get(result, 0.0) > 0)
    if len(lengths) < FEWEST:
        return None
    used = [r for r in rungs if r.T in lengths]
    errors = tuple(r.target[result] for r in used)
    if not all(math.isfinite(e) for e in (*errors, *(r.recipe[result] for r in used))):
        return None
    slope, low, high = fitted(lengths, errors)
    predicted, _, most = fitted(lengths, [r.recipe[result] for r in used])
    drifts = low > most and slope - predicted > _APART
    safe = _safe(lengths, errors, slope) if drifts else None
    return Growth(
        result=result,
        dtype=dtype,
        lengths=lengths,
        errors=errors,
        slope=slope,
        low=low,
        high=high,
        predicted=predicted,
        safe_up_to=safe,
        sentence=_sentence(result, dtype, slope, predicted, safe, drifts=drifts),
    )


def _safe(lengths: Sequence[int], errors: Sequence[float], slope: float) -> int:
    """Largest T whose error stays useful, by the fitted law beyond what was measured."""
    beyond = [n for n, e in zip(lengths, errors, strict=True) if e > USEFUL]
    if beyond:
        within = [n for n in lengths if n < beyond[0]]
        return max(within, default=0)
    return int(lengths[-1] * min((USEFUL / errors[-1]) ** (1 / slope), 2.0**20))


def _sentence(result: str, dtype: str, slope: float, predicted: float, safe: int | None, *, drifts: bool) -> str:
    if not drifts:
        return f"{result} ({dtype}): error against T as the recipe predicts, T^{slope:.2f}"
    law = f"{result} ({dtype}) drifts: its error grows like T^{slope:.2f}, the recipe's like T^{predicted:.2f}"
    return f"{law}; state safe up to T = {safe}"
