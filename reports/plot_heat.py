"""Where does the error sit?"""

from linverify.insight import ErrorMap
from linverify.reports.heat import axis, position, row_names, worst_cell
from linverify.reports.svg import WIDTH, Canvas, Figure, linear
from linverify.reports.text import share

_LEFT, _RIGHT, _TOP = 46.0, 8.0, 6.0
_LEVELS = 8
_MOST_ROWS = 32


def plot_heat(found: ErrorMap) -> Figure | None:
    """Return the map: heads down, positions across, the darker the closer to the line, red beyond it."""
    rows = found.grid[:_MOST_ROWS]
    columns = max((len(r) for r in rows), default=0)
    if not columns:
        return None
    height = min(26.0, max(9.0, 150.0 / len(rows)))
    width = (WIDTH - _LEFT - _RIGHT) / columns
    canvas = Canvas(_TOP + height * len(rows) + 34, f"error of {found.result} by head and position")
    levels: dict[str, list[str]] = {}
    names = row_names(found)
    for r, row in enumerate(rows):
        y = _TOP + height * r
        if height >= 12 or r % 2 == 0:
            canvas.text(_LEFT - 6, y + height / 2 + 4, names[r], "tick", anchor="end")
        for c, value in enumerate(row):
            x = _LEFT + width * c
            cell = f"M{x:.1f} {y:.1f}h{width * 0.94:.1f}v{height - 1:.1f}h-{width * 0.94:.1f}z"
            levels.setdefault(_level(value), []).append(cell)
    for level, cells in sorted(levels.items()):
        canvas.path("".join(cells), f"heat {level}")
    floor = _TOP + height * len(rows)
    at = linear(0, columns, _LEFT, WIDTH - _RIGHT)
    for tick in _ticks(columns):
        canvas.text(at(tick + 0.5), floor + 14, str(tick), "tick", anchor="middle")
    canvas.text(WIDTH - _RIGHT, floor + 29, axis(found), "tick", anchor="end")
    canvas.text(_LEFT, floor + 29, "batch row, head (down)", "tick")
    r, c, value = worst_cell(found)
    beyond = sum(not v <= 1 for row in found.grid for v in row)
    cells_in_all = sum(map(len, found.grid))
    answer = f"{beyond} of {cells_in_all} cells beyond the line. " if beyond else "Every cell is below the line. "
    return Figure(
        "Where does the error sit?",
        f"{answer}The worst is {names[r]}, {position(found, c)} with {share(value)} of the budget.",
        canvas.markup(),
        f"{found.result}, {found.dtype}, {found.case_id}; largest share of the budget; red is beyond the line",
    )


def _level(value: float) -> str:
    if not value <= 1:
        return "beyond"
    return f"level-{min(_LEVELS, int(value * _LEVELS))}"


def _ticks(columns: int) -> list[int]:
    step = next((s for s in (1, 2, 4, 8, 16, 32, 64) if columns / s <= 9), 128)
    return list(range(0, columns, step))
