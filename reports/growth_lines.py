"""Error against T: a sparkline a result, with its slope beside the one that the recipe predicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from linverify.insight import Growth
from linverify.reports.text import number

_UNICODE = "▁▂▃▄▅▆▇█"
_ASCII = "_.-:=+*#"
_SHOWN = 4


def growth_lines(found: Sequence[Growth]) -> RenderableType:
    """Return a line a result, the steepest beyond its prediction first, and what each says."""
    ranked = sorted(found, key=lambda g: g.predicted - g.slope)
    grid = Table.grid(padding=(0, 2))
    for _ in range(2):
        grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_column(overflow="fold")
    sentences = []
    for g in ranked[:_SHOWN]:
        ends = (
            f"T {g.lengths[0]} to {g.lengths[-1]}, {number(g.errors[0])} to {number(g.errors[-1])}" if g.errors else ""
        )
        drifts = g.low > g.predicted
        slope = Text(f"{ends}; slope {g.slope:.2f} ({g.low:.2f} to {g.high:.2f}), ", style="yellow" if drifts else "")
        grid.add_row(g.result, g.dtype, Sparkline(g.errors), slope + Text(f"the recipe's own {g.predicted:.2f}"))
        sentences += [Padding(Text(g.sentence), (0, 0, 0, 2))] if g.sentence else []
    return Group(Text("error against T", style="bold"), grid, *sentences)


@dataclass(frozen=True, slots=True)
class Sparkline:
    """One character a value, its height the logarithm of the value; what is not positive and finite stands as "?"."""

    values: tuple[float, ...]

    def cells(self, *, ascii_only: bool = False) -> str:
        """Return the line; equal values are drawn low."""
        marks = _ASCII if ascii_only else _UNICODE
        known = [math.log(v) for v in self.values if 0 < v < math.inf]
        low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)

        def mark(v: float) -> str:
            if not 0 < v < math.inf:
                return "?"
            return marks[round((math.log(v) - low) / span * (len(marks) - 1)) if span else 0]

        return "".join(map(mark, self.values))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw."""
        yield Segment(self.cells(ascii_only=options.ascii_only))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say that the line cannot be shrunk."""
        return Measurement(len(self.values), len(self.values))
