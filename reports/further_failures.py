"""The laws that are broken as well: a line each, with the case that replays it."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linverify.reports.rule import Line
from linverify.reports.text import STYLES, words
from linverify.verdict import PropertyResult


def further_failures(found: Sequence[PropertyResult]) -> RenderableType:
    """Return the table; the whole of each failure is in the JSON record."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for result in found:
        if result.failure is not None:
            status = Text(words(result.status), style=STYLES[result.status])
            case = Text(result.failure.case_id, style="dim")
            grid.add_row(status, words(result.name), Text.assemble(result.failure.diagnosis, "\n", case))
    return Group(Line(), Text("also", style="bold"), grid)
