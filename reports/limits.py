"""What the target refused and what else a reader should know."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from linverify.reports.text import counted
from linverify.verdict import Refusal


def refusals(found: Sequence[Refusal]) -> RenderableType:
    """Return one entry a limitation: the exception, how often, and its smallest case."""
    lines: list[RenderableType] = [Text("refused (a limitation, neither pass nor violation)", style="bold")]
    for refusal in found:
        lines.append(Text(f"  {refusal.kind}: {refusal.message}".rstrip(": ")))
        lines.append(Text(f"    {counted(refusal.count, 'case')}; smallest {refusal.case_id}", style="dim"))
    return Group(*lines)


def notes(found: Sequence[str]) -> RenderableType:
    """Return the notes as a list."""
    return Group(*(Text(f"note: {note}") for note in found))
