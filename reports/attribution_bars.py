"""Where the rounding error comes from: a waterfall, one line a stage."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from linverify.insight import Attribution
from linverify.reports.text import counted, percent, stages

_SHOWN = 2  # the page has all of them
_NOTHING = 0.99  # so much unexplained is no matter of rounding; the stages of what rounding there would be say nothing


def attribution_bars(found: Sequence[Attribution]) -> RenderableType:
    """Return the waterfalls of the results of which most is unexplained; the others are counted.

    Results whose error is no rounding at all are named, without a waterfall.
    """
    wrong = list(dict.fromkeys(a.result for a in found if a.unexplained >= _NOTHING))
    ranked = sorted((a for a in found if a.unexplained < _NOTHING), key=lambda a: -a.unexplained)
    said = Padding(Text(f"not from rounding in {', '.join(wrong)}: it explains less than a hundredth"), (0, 0, 0, 2))
    if not ranked:
        return Group(Text("where the error comes from", style="bold"), said)
    of = "shares of the expected squared error"
    if any(a.unexplained > 0 for a in ranked[:_SHOWN]):
        of += "; unexplained: of the measured one"
    parts: list[RenderableType] = [Text.assemble(("where the error comes from", "bold"), (f"  ({of})", "dim"))]
    for attribution in ranked[:_SHOWN]:
        parts.append(Text.assemble(f"{attribution.result}  {attribution.dtype}  ", (attribution.case_id, "dim")))
        parts.append(_waterfall(attribution))
        if attribution.sentence:
            parts.append(Padding(Text(attribution.sentence), (0, 0, 0, 2)))
    if wrong:
        parts.append(said)
    rest = len(ranked) - _SHOWN
    if rest > 0:
        parts.append(Text(f"{counted(rest, 'more result')} in the HTML report", style="dim"))
    return Group(*parts)


def _waterfall(found: Attribution) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=13)
    grid.add_column()
    grid.add_column(justify="right", no_wrap=True)
    reached = 0.0
    for name, part in stages(found.shares):
        grid.add_row(f"  {name}", Span(reached, reached + part), percent(part))
        reached += part
    if found.unexplained > 0:
        bar = Span(0.0, found.unexplained, "red")
        grid.add_row(Text("  unexplained", style="red"), bar, percent(found.unexplained))
    return grid


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a bar, from start to end, both in [0, 1]; at least one character wide."""

    start: float
    end: float
    style: str = "blue"
    width: int = 40

    def cells(self, width: int, *, ascii_only: bool = False) -> str:
        """Return the piece as text of exactly `width` characters."""
        first = min(round(self.start * width), width - 1)
        last = min(max(round(self.end * width), first + 1), width)
        return " " * first + ("#" if ascii_only else "█") * (last - first) + " " * (width - last)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw."""
        width = min(self.width, options.max_width)
        yield Segment(self.cells(width, ascii_only=options.ascii_only), console.get_style(self.style))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how far a table may shrink the bar."""
        return Measurement(min(10, options.max_width), min(self.width, options.max_width))
