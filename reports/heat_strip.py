"""Where the error sits: heads down, positions across, a character a cell; what is beyond the line stands out without colour."""

import math
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from linverify.insight import ErrorMap
from linverify.reports.heat import axis, position, row_names, worst_cell
from linverify.reports.text import counted, share

_UNICODE = " ░▒▓"
_ASCII = " .-+"
_BEYOND = ("█", "#")
_ROWS = 8


def heat_strip(found: ErrorMap) -> RenderableType:
    """Return the strip of one result under a line that says which."""
    r, c, worst = worst_cell(found)
    name = row_names(found)[r] if found.grid else ""
    head = Text.assemble(("where the error sits", "bold"), f"  {found.result}  {found.dtype}  ", (found.case_id, "dim"))
    place = Text(f"worst: {name}, {position(found, c)}, share of the budget {share(worst)}")
    return Group(head, Strip(found), Padding(place, (0, 0, 0, 2)))


@dataclass(frozen=True, slots=True)
class Strip:
    """The cells of a map; rows and columns that do not fit are joined, the largest of them showing."""

    found: ErrorMap

    def lines(self, width: int, *, ascii_only: bool = False) -> list[tuple[str, str]]:
        """Return the name and the cells of every row shown, cells at most `width` characters."""
        rows = sorted(range(len(self.found.grid)), key=lambda r: -max(map(_rank, self.found.grid[r]), default=0.0))
        names = row_names(self.found)
        shades, beyond = (_ASCII, _BEYOND[1]) if ascii_only else (_UNICODE, _BEYOND[0])

        def mark(value: float) -> str:
            return shades[min(int(value * len(shades)), len(shades) - 1)] if value <= 1 else beyond

        return [(names[r], "".join(map(mark, _joined(self.found.grid[r], width)))) for r in sorted(rows[:_ROWS])]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw every row, its cells between bars, then the axis."""
        names = row_names(self.found)
        margin = max(map(len, names), default=0) + 2
        room = max(options.max_width - margin - 3, 4)
        red = console.get_style("red")
        bar, beyond = ("|", _BEYOND[1]) if options.ascii_only else ("│", _BEYOND[0])
        for name, cells in self.lines(room, ascii_only=options.ascii_only):
            yield Segment(f"{name:>{margin}} {bar}")
            for cell in cells:
                yield Segment(cell, red if cell == beyond else None)
            yield Segment(f"{bar}\n")
        left_out = len(self.found.grid) - _ROWS
        shades = _ASCII if options.ascii_only else _UNICODE
        legend = f"{axis(self.found)}; {''.join(shades[1:])} nearer to the line, {beyond} beyond it"
        more = f"; {counted(left_out, 'milder row')} left out" if left_out > 0 else ""
        yield Padding(Text(legend + more, style="dim"), (0, 0, 0, min(margin + 2, options.max_width // 2)))


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _joined(row: tuple[float, ...], width: int) -> list[float]:
    """Return at most `width` values, each the largest of those it stands for."""
    step = max(1, math.ceil(len(row) / width))
    return [max(map(_rank, row[i : i + step])) for i in range(0, len(row), step)]
