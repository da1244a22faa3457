"""Growth: the error against T, its slope, and the slope that the recipe predicts.

Rounding that is made anew in every chunk from a float32 state leaves a relative error that does not depend on T (slope 0 of log
error against log T). Rounding inside the carried state is a random walk where nothing decays: slope 1/2, and 1 where it is
biased. So the ladder runs without decay, and a slope whose 95 % interval lies above the recipe's own is named a drift. Far out
float32's own sums walk, too, at 1e-7: so does an error named that grows and is a digit or more beyond the recipe's.
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
from linverify.problem import Problem
from linverify.recipe import Recipe
from linverify.reference.chunkwise import chunkwise
from linverify.reference.question import pose, sizes_of
from linverify.score import Answer
from linverify.segments import SEGMENT, cut, part, spans

# Two-sided 95 % quantiles of Student's t with 1, 2 ... degrees of freedom; the last one serves all beyond.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
# A relative error of one percent leaves two significant digits: less is of no use to a layer that trains.
USEFUL = 0.01
# Slopes nearer than this are one law: between 0 and 1/2 there is none.
_APART = 0.125
# Times the recipe's error: a digit is lost that the recipe keeps.
_DIGIT = 10.0
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


def far_rung(
    operator: Operator,
    problem: Problem,
    results: Mapping[str, Tensor],
    recipe: Recipe | None,
    device: torch.device | str,
    segment: int = SEGMENT,
) -> Rung:
    """Measure o and the final state of a sequence too long to be held in float64, a segment at a time, without gradients.

    Args:
        operator: whose sequences can be cut into segments.
        problem: dense, with a final state.
        results: of the target; others than o and the state are not looked at.
        recipe: whose errors are measured beside, from segment to segment in its own state; None where that would take too long.
        device: of the computation.
        segment: tokens of a segment, whole chunks of the recipe.
    """
    T = sizes_of(problem, operator)["T"]
    exact = modelled = problem.initial_state
    sums: dict[str, list[float]] = {}

    def count(name: str, value: Tensor, model: Tensor | None, ref: Tensor) -> None:
        """Add squares: of the target's error, of the recipe's, and of the reference."""
        errors = [value.to(ref.device, torch.float64) - ref]
        errors += [] if model is None else [round_to(model, format_of(value.dtype)) - ref]
        found = [float(x.square().sum()) for x in (ref, *errors)]
        sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found

    for start, stop in spans(T, segment):
        found = chunkwise(cut(problem, operator, start, stop, exact, backward=False), operator, device=device)
        model: Mapping[str, Tensor] = {}
        if recipe is not None:
            question = pose(cut(problem, operator, start, stop, modelled, backward=False), operator, device)
            model = simulated(question, recipe, ())[0]
        count("o", part(operator, "o", results["o"], start, stop), model.get("o"), found["o"])
        exact, modelled = found["state"], model.get("state")
        if stop == T and "state" in results:
            count("state", results["state"], modelled, exact)
    relative = {n: [math.sqrt(e / x[0]) for e in x[1:]] for n, x in sums.items() if x[0] > 0}
    return Rung(T, {n: x[0] for n, x in relative.items()}, {n: x[1] for n, x in relative.items() if len(x) > 1})


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
    """The law of one result; None where there are too few lengths, or errors of zero.

    Few rungs may have no errors of the recipe: its law is that of the others.
    """
    used = [r for r in rungs if r.target.get(result, 0.0) > 0 and r.recipe.get(result, 1.0) > 0]
    told = [r for r in used if result in r.recipe]
    if len(told) < FEWEST:
        return None
    lengths, errors = tuple(r.T for r in used), tuple(r.target[result] for r in used)
    if not all(math.isfinite(e) for e in (*errors, *(r.recipe[result] for r in told))):
        return None
    slope, low, high = fitted(lengths, errors)
    predicted, _, most = fitted([r.T for r in told], [r.recipe[result] for r in told])
    steeper = low > most and slope - predicted > _APART
    beyond = told[-1].target[result] / told[-1].recipe[result]
    drifts = steeper or (low > _APART and beyond > _DIGIT)
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
        sentence=_sentence(result, dtype, slope, predicted, safe, beyond),
    )


def _safe(lengths: Sequence[int], errors: Sequence[float], slope: float) -> int:
    """Largest T whose error stays useful, by the fitted law beyond what was measured."""
    beyond = [n for n, e in zip(lengths, errors, strict=True) if e > USEFUL]
    if beyond:
        within = [n for n in lengths if n < beyond[0]]
        return max(within, default=0)
    return int(lengths[-1] * min((USEFUL / errors[-1]) ** (1 / slope), 2.0**20))


def _sentence(result: str, dtype: str, slope: float, predicted: float, safe: int | None, beyond: float) -> str:
    if safe is None:
        return f"{result} ({dtype}): error against T as the recipe predicts, T^{slope:.2f}"
    law = f"{result} ({dtype}) drifts: its error grows like T^{slope:.2f}, the recipe's like T^{predicted:.2f}"
    law += f" and is {beyond:.2g} times smaller" if beyond > _DIGIT else ""
    return f"{law}; state safe up to T = {safe}"
