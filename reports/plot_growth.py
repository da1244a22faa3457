"""Does the error grow with the length of the sequence?"""

import math

from linverify.insight import Growth
from linverify.reports.svg import WIDTH, Canvas, Figure, decade_ticks, decades, logarithmic, power

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 220.0, 46.0, 14.0, 14.0, 34.0


def plot_growth(found: Growth) -> Figure:
    """Return error against T on logarithmic axes, with the slope that the recipe predicts."""
    canvas = Canvas(_HEIGHT, f"error of {found.result} against T")
    points = [(t, e) for t, e in zip(found.lengths, found.errors, strict=False) if t > 0 and 0 < e < math.inf]
    if points:
        _draw(canvas, points, found)
    return Figure(
        "Does the error grow with T?",
        found.sentence or slope_text(found),
        canvas.markup(),
        f"{found.result}, {found.dtype}; {slope_text(found)}",
    )


def slope_text(found: Growth) -> str:
    """Return the slope with its interval, and the recipe's own."""
    return f"slope {found.slope:.2f} ({found.low:.2f} to {found.high:.2f}), the recipe's own {found.predicted:.2f}"


def _draw(canvas: Canvas, points: list[tuple[int, float]], found: Growth) -> None:
    lengths, errors = [t for t, _ in points], [e for _, e in points]
    low, high = decades(errors)
    left, right = min(lengths) / 1.3, max([*lengths, found.safe_up_to or 0]) * 1.3
    x = logarithmic(left, right, _LEFT, WIDTH - _RIGHT)
    y = logarithmic(low, high, _HEIGHT - _BOTTOM, _TOP)
    for tick in decade_ticks(low, high):
        canvas.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 6, y(tick) + 4, power(tick), "tick", anchor="end")
    step = max(1, math.ceil(len(lengths) / 6))
    for t in lengths[::step]:
        canvas.text(x(t), _HEIGHT - _BOTTOM + 15, f"{t}", "tick", anchor="middle")
    canvas.text(WIDTH - _RIGHT, _HEIGHT - 4, "T", "tick", anchor="end")
    canvas.text(_LEFT, _HEIGHT - 4, "relative error (rms)", "tick")
    # The prediction is a slope alone; it is laid through the middle of what was measured.
    middle_t = math.exp(sum(map(math.log, lengths)) / len(lengths))
    middle_e = math.exp(sum(map(math.log, errors)) / len(errors))
    predicted = [(x(t), y(middle_e * (t / middle_t) ** found.predicted)) for t in (min(lengths), max(lengths))]
    canvas.curve(predicted, "curve expected")
    canvas.text(predicted[0][0] + 4, predicted[0][1] + 14, "recipe", "tick")
    canvas.curve([(x(t), y(e)) for t, e in points], "curve measured")
    canvas.dots([(x(t), y(e)) for t, e in points], "measured")
    if found.safe_up_to is not None:
        at = x(found.safe_up_to)
        canvas.line(at, _TOP, at, _HEIGHT - _BOTTOM, "limit")
        canvas.text(at - 4, _TOP + 10, f"useful to T = {found.safe_up_to}", "tick", anchor="end")
