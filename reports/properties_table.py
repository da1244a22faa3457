"""Which property held, on how many cases, and how close to the line: one row a property."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from linverify.reports.share_bar import ShareBar
from linverify.reports.text import duration, share, status_text, words
from linverify.verdict import PropertyResult, Status

_ASIDE = (Status.NOT_OFFERED, Status.NOT_APPLICABLE)
_BAR = (6, 20)  # at least, at most
# What a narrow console does without, the first first: a word or a number that is cut is worse than none.
_DISPENSABLE = ("time", "budget", "refused", "cases", "share of")


def properties_table(properties: Sequence[PropertyResult]) -> RenderableType:
    """Return the table: required properties first, then those only reported; what was not asked stands below it."""
    asked = [p for p in properties if p.status not in _ASIDE]
    parts: list[RenderableType] = [Fitting(tuple(sorted(asked, key=lambda p: not p.required)))] if asked else []
    if any(not p.required for p in asked):
        parts.append(Text("(in brackets: looked at and reported; the verdict does not depend on it)", style="dim"))
    parts += [
        Text(f"{words(p.name)}: {words(p.status)}{f' ({p.note})' if p.note else ''}", style="dim")
        for p in properties
        if p.status in _ASIDE
    ]
    parts += [Text.assemble(f"{words(p.name)}: ", status_text(p.status), f" ({p.note})") for p in asked if p.note]
    return Group(*parts)


@dataclass(frozen=True, slots=True)
class Fitting:
    """The rows, with as many columns as the console has room for."""

    rows: tuple[PropertyResult, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw; the names alone may be wrapped."""
        columns = ["property", "status", "cases", "share of", "budget", "time"]
        if any(p.refused for p in self.rows):
            columns.insert(3, "refused")
        for dispensable in ("", *_DISPENSABLE):
            columns = [c for c in columns if c != dispensable]
            least = self._table(columns, _BAR[0])
            if Measurement.get(console, options.update(max_width=1000), least).maximum <= options.max_width:
                break
        table = self._table(columns, _BAR[1])
        table.columns[0].no_wrap = len(columns) > 2
        yield table

    def _table(self, columns: Sequence[str], bar: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
        for column in columns:
            justify = "right" if column in ("cases", "refused", "share of", "time") else "left"
            table.add_column(column, justify=justify, no_wrap=column != "budget")  # type: ignore[arg-type]
        for p in self.rows:
            name = Text(words(p.name)) if p.required else Text(f"({words(p.name)})", style="dim")
            cells: dict[str, RenderableType] = {
                "property": name,
                "status": status_text(p.status),
                "cases": str(p.cases),
                "refused": str(p.refused or "-"),
                "share of": share(p.worst_budget_fraction),
                "budget": ShareBar(p.worst_budget_fraction, bar),
                "time": duration(p.seconds),
            }
            table.add_row(*(cells[c] for c in columns))
        return table
