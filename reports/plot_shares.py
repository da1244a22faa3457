"""How close to the line does each property come?"""

from collections.abc import Sequence

from linverify.reports.svg import WIDTH, Canvas, Figure, Scale, decade_ticks, decades, linear, logarithmic, power
from linverify.reports.text import counted, share, words
from linverify.verdict import PropertyResult

_ROWS = 20
_ROW = 18.0
_LINE_AT = 0.6  # of the width, where anything lies beyond it
_LEFT, _RIGHT = 142.0, 54.0


def _axis(values: Sequence[float]) -> tuple[Scale, list[float]]:
    """Return an axis that is linear up to the line and logarithmic beyond it, with its ticks."""
    right = WIDTH - _RIGHT
    beyond = [v for v in values if v > 1]
    if not beyond:
        return linear(0.0, 1.1, _LEFT, right), [0.0, 0.5, 1.0]
    at = _LEFT + _LINE_AT * (right - _LEFT)
    below = linear(0.0, 1.0, _LEFT, at)
    _, high = decades([*beyond, 10.0])
    above = logarithmic(1.0, high, at, right)
    return lambda v: below(v) if v <= 1 else above(v), [0.0, 0.5, 1.0, *decade_ticks(1.0, high, 3)[1:]]


def plot_shares(properties: Sequence[PropertyResult]) -> Figure | None:
    """Return a bar a property, the largest share first; None where no property has a share of a budget."""
    rated = [p for p in properties if p.cases and p.worst_budget_fraction is not None]
    if not rated:
        return None
    rated.sort(key=lambda p: -(p.worst_budget_fraction or 0.0))
    shown, top, bottom = rated[:_ROWS], 22.0, 22.0
    values = [p.worst_budget_fraction or 0.0 for p in shown]
    canvas = Canvas(top + bottom + _ROW * len(shown), "share of the budget by property")
    x, ticks = _axis(values)
    floor = top + _ROW * len(shown)
    for tick in ticks:
        canvas.line(x(tick), top - 4, x(tick), floor, "grid")
        canvas.text(x(tick), floor + 14, power(tick) if tick else "0", "tick", anchor="middle")
    for row, (found, value) in enumerate(zip(shown, values, strict=True)):
        y = top + _ROW * row
        kind = "bad" if value > 1 and found.required else "warn" if value > 0.5 else "good"
        name = words(found.name)
        canvas.text(_LEFT - 8, y + 12, name if len(name) <= 22 else f"{name[:21]}…", "name", anchor="end")
        canvas.rect(_LEFT, y + 3, x(value) - _LEFT, _ROW - 7, f"bar {kind}", f"{name}: {share(value)}")
        canvas.text(WIDTH - _RIGHT + 6, y + 12, share(value), f"value {kind}")
    canvas.line(x(1.0), top - 6, x(1.0), floor, "limit")
    canvas.text(x(1.0), top - 10, "the line", "tick", anchor="middle")
    rest = len(rated) - len(shown)
    beyond = sum(v > 1 for v in (p.worst_budget_fraction or 0.0 for p in rated))
    answer = (
        f"{counted(beyond, 'property', 'properties')} beyond the line."
        if beyond
        else f"None reaches the line; {words(rated[0].name)} comes closest with {share(values[0])}."
    )
    return Figure(
        "How much of the budget does each property use?",
        answer + (f" {counted(rest, 'property', 'properties')} with smaller shares not drawn." if rest else ""),
        canvas.markup(),
        "largest share over all cases; 1 is the line, beyond it the axis is logarithmic",
    )
