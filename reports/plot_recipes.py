"""Which precision recipe computes like this kernel?"""

import math
from collections.abc import Sequence

from linverify.insight import RecipeMatch
from linverify.reports.recipe_sentence import recipe_sentence
from linverify.reports.svg import WIDTH, Canvas, Figure, linear

_LEFT, _RIGHT, _ROW = 16.0, 16.0, 34.0


def plot_recipes(found: Sequence[RecipeMatch]) -> Figure | None:
    """Return for every dtype how well the best recipe and the runner-up explain the error; None where none was tried."""
    if not found:
        return None
    lows = [s for m in found for s in (m.score, m.runner_up_score) if math.isfinite(s)]
    low = min([-1.0, *lows]) * 1.05
    x = linear(0.0, low, _LEFT, WIDTH - _RIGHT)
    rows = sum(1 + bool(m.runner_up) for m in found)
    floor = 6 + _ROW * rows
    canvas = Canvas(floor + 34, "how well precision recipes explain the error")
    for tick in _ticks(low):
        canvas.line(x(tick), 4, x(tick), floor, "grid")
        canvas.text(x(tick), floor + 14, f"{tick:g}", "tick", anchor="middle")
    canvas.text(WIDTH - _RIGHT, floor + 29, "explains more →", "tick", anchor="end")
    canvas.text(_LEFT, floor + 29, "ln(residual / error energy)", "tick")
    y = 6.0
    for match in found:
        bars = [(match.name or "none accepted", match.score, "good" if match.name else "bad")]
        if match.runner_up:
            bars.append((match.runner_up, match.runner_up_score, "other"))
        for position, (name, score, kind) in enumerate(bars):
            dtype = f"{match.dtype}  " if position == 0 else "runner-up  "
            canvas.text(_LEFT, y + 13, f"{dtype}{name}", "name")
            canvas.rect(_LEFT, y + 17, x(score) - _LEFT, 10, f"bar {kind}", f"{name}: {score:.2f}")
            y += _ROW
    return Figure(
        "Which precision recipe computes like this kernel?",
        " ".join(recipe_sentence(m) for m in found),
        canvas.markup(),
        "the error that a recipe's own rounding makes, subtracted from the kernel's",
    )


def _ticks(low: float) -> list[float]:
    step = next((s for s in (0.5, 1.0, 2.0, 5.0, 10.0) if -low / s <= 6), 20.0)
    return [-step * i or 0.0 for i in range(int(-low / step) + 1)]
