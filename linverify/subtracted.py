"""What stays after the simulated rounding errors of a matched recipe are subtracted, judged against what float32 flips.

Once a recipe reproduces a kernel's results nearly bit by bit, rounding is no cover any more: what is left should be the few
last bits that another order of float32 accumulation flips. Realisations that round operands as hardware does and perturb
float32 alone show how many that are; a row, a tile or an element that has far more is a fault below the rounding level.

It claims something only where the match is overwhelming: three rows in four must be reproduced bit by bit, but for one element
in fifty. A point that the recipe lacks shows nearly everywhere, and so does the float32 noise of a result that is stored in
float32; then there is no claim.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from linverify import budget
from linverify.dtype import FP32, Format, format_of, round_to, ulp
from linverify.ensemble import flipped
from linverify.operator import GATE_KINDS, Operator
from linverify.recipe import Recipe
from linverify.rule import DECLARED
from linverify.score import Answer, Score
from linverify.statistics import CHANCE, Axes, ratio, statistics, thresholds

# One flipped bit is chance wherever it happens: it must stay below the line of the maximum by itself.
_FLIP = DECLARED.line * CHANCE["maximum"] / 1.25
# So many rows must be reproduced, but for so many of their elements.
_BULK, _DIFFERING = 0.75, 0.02


class Subtraction:
    """Realisations of one recipe on one case, for all its results."""

    def __init__(self, operator: Operator, answer: Answer, recipe: Recipe) -> None:
        self.answer, self.recipe = answer, recipe
        gates = tuple(i.name for i in operator.of_kind(*GATE_KINDS) if i.name in answer.problem.wrt)
        generator = torch.Generator(device=answer.recurrence.rows.q.device).manual_seed(budget.seeds()[0])
        count = DECLARED.train + DECLARED.held
        self.base, self.others = flipped(answer.recurrence, recipe, gates, generator, count)

    def score(self, result: str, value: Tensor, axes: Axes) -> Score | None:
        """Judge what is left of a result; None where the recipe does not match it well enough to say anything."""
        ref, fmt = self.answer.reference[result], format_of(value.dtype)
        best: tuple[float, Score] | None = None
        for base, others in zip(self.base, self.others, strict=True):
            if result not in base or not bool(torch.isfinite(others[result]).all()):
                continue
            expected = round_to(base[result], fmt)
            found = self._judged(
                axes.view(value.to(ref.device, torch.float64) - expected),
                axes.view(round_to(others[result], fmt) - expected),
                axes.view(ref),
                fmt,
            )
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return None if best is None else best[1]

    def _judged(self, e: Tensor, flips: Tensor, ref: Tensor, fmt: Format) -> tuple[float, Score] | None:
        typical = ref.square().mean((-2, -1), keepdim=True).sqrt()
        floor = (ulp(torch.maximum(ref.abs(), typical), fmt) / _FLIP).square() + (FP32.unit_roundoff * typical).square()
        sigma = (budget.profiled(flips[: DECLARED.train]) + floor + budget.TINY).sqrt()
        differing = (e != 0).double().mean(-1).flatten()
        bulk = float(torch.quantile(differing, _BULK))
        if bulk > _DIFFERING:
            return None
        # matched filters would see a single flipped operand, whose error is shared by a whole row
        seen = [
            {k: v for k, v in s.items() if "filter" not in k}
            for s in statistics(torch.cat([e[None], flips[DECLARED.train :]]), sigma, ref, 0.0)
        ]
        null = {k: max(s[k] for s in seen[1:]) for k in seen[0]}
        chance = thresholds((e.shape[0], e.shape[1], e.shape[2]), null)
        allowed = {k: chance[k] for k in null}
        worst, which = ratio(seen[0], allowed)
        outcome = "reject" if worst > DECLARED.line else "pass"
        line = DECLARED.line * allowed["maximum"]
        return bulk, Score(outcome, worst / DECLARED.line, which, e, sigma, ref, line)


def subtracted(
    operator: Operator, answer: Answer, results: Mapping[str, Tensor], recipe: Recipe, axes: Mapping[str, Axes]
) -> dict[str, Score]:
    """Scores of what is left of each result that the recipe explains."""
    by = Subtraction(operator, answer, recipe)
    found = {n: by.score(n, v, axes[n]) for n, v in results.items() if n in answer.reference}
    return {n: s for n, s in found.items() if s is not None}
