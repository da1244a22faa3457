"""Which property held, on how many cases, and how close to the line: one row a property."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify.reports.share_bar import ShareBar
from linverify.reports.text import duration, share, status_text, words
from linverify.verdict import PropertyResult, Status

_ASIDE = (Status.NOT_OFFERED, Status.NOT_APPLICABLE)


def properties_table(properties: Sequence[PropertyResult]) -> RenderableType:
    """Return the table: required properties first, then those only reported; what was not asked stands below it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("property", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("cases", justify="right", no_wrap=True)
    asked = [p for p in properties if p.status not in _ASIDE]
    refusing = any(p.refused for p in asked)
    if refusing:
        table.add_column("refused", justify="right", no_wrap=True)
    table.add_column("share of", justify="right", no_wrap=True)
    table.add_column("budget")
    table.add_column("time", justify="right", no_wrap=True)
    for p in sorted(asked, key=lambda p: not p.required):
        name = Text(words(p.name)) if p.required else Text(f"({words(p.name)})", style="dim")
        counts = [str(p.cases), *([str(p.refused or "-")] if refusing else [])]
        bar = ShareBar(p.worst_budget_fraction, 20)
        table.add_row(name, status_text(p.status), *counts, share(p.worst_budget_fraction), bar, duration(p.seconds))
    parts: list[RenderableType] = [table] if asked else []
    if any(not p.required for p in asked):
        parts.append(Text("(in brackets: looked at and reported; the verdict does not depend on it)", style="dim"))
    parts += [
        Padding(
            Text(f"{words(p.name)}: {words(p.status)}{f' ({p.note})' if p.note else ''}", style="dim"), (0, 0, 0, 0)
        )
        for p in properties
        if p.status in _ASIDE
    ]
    parts += [Text.assemble(f"{words(p.name)}: ", status_text(p.status), f" ({p.note})") for p in asked if p.note]
    return Group(*parts)
