"""Where does the rounding error come from?"""

from linverify.insight import Attribution
from linverify.reports.svg import WIDTH, Canvas, Figure, linear
from linverify.reports.text import percent, stages, words

_ROW = 20.0
_LEFT, _RIGHT = 100.0, 46.0


def plot_attribution(found: Attribution) -> Figure:
    """Return the waterfall: each stage begins where the one before it ended, and what nothing explains stands apart."""
    parts = stages(found.shares)
    rows = len(parts) + (found.unexplained > 0)
    canvas = Canvas(8 + 20 + _ROW * rows, f"attribution of the error of {found.result}")
    x = linear(0.0, 1.0, _LEFT, WIDTH - _RIGHT)
    floor = 8 + _ROW * rows
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(x(tick), 4, x(tick), floor, "grid")
        canvas.text(x(tick), floor + 14, f"{tick:.0%}", "tick", anchor="middle")
    reached = 0.0
    for row, (name, part) in enumerate(parts):
        y = 8 + _ROW * row
        canvas.text(_LEFT - 8, y + 13, name, "name", anchor="end")
        canvas.rect(x(reached), y + 3, max(x(reached + part) - x(reached), 1.0), _ROW - 7, "bar stage", percent(part))
        canvas.text(WIDTH - _RIGHT + 6, y + 13, percent(part), "value")
        reached += part
        if row + 1 < len(parts):
            canvas.line(x(reached), y + _ROW - 4, x(reached), y + _ROW + 3, "step")
    if found.unexplained > 0:
        y = 8 + _ROW * len(parts)
        canvas.text(_LEFT - 8, y + 13, "unexplained", "name bad", anchor="end")
        canvas.rect(_LEFT, y + 3, x(found.unexplained) - _LEFT, _ROW - 7, "bar bad", percent(found.unexplained))
        canvas.text(WIDTH - _RIGHT + 6, y + 13, percent(found.unexplained), "value bad")
    return Figure(
        "Where does the rounding error come from?",
        found.sentence or _sentence(found),
        canvas.markup(),
        f"{found.result}, {found.dtype}, {found.case_id}; shares of the expected squared error"
        + ("; unexplained: of the measured one" if found.unexplained > 0 else ""),
    )


def _sentence(found: Attribution) -> str:
    name, part = max(found.shares.items(), key=lambda item: item[1], default=("", 0.0))
    return f"Most of it, {percent(part)}, is from {words(name)}." if name else ""
