"""The laws that are broken as well: those that fail alike together, with a case that replays it."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from linverify.reports.rule import Line
from linverify.reports.text import STYLES, words
from linverify.verdict import PropertyResult


def further_failures(found: Sequence[PropertyResult]) -> RenderableType:
    """Return a paragraph for every status and diagnosis; the whole of each failure is in the other reports."""
    alike: dict[tuple[str, str], list[PropertyResult]] = {}
    for result in found:
        if result.failure is not None:
            alike.setdefault((result.status, result.failure.diagnosis), []).append(result)
    parts: list[RenderableType] = [Line(), Text("also", style="bold")]
    for (status, diagnosis), members in alike.items():
        names = ", ".join(words(m.name) for m in members)
        parts.append(Text.assemble((words(status), STYLES[status]), "  ", names))
        failure = members[0].failure
        assert failure is not None
        what = diagnosis or failure.evidence.message or words(failure.evidence.kind)
        parts.append(Padding(Text.assemble(what, "\n", (failure.case_id, "dim")), (0, 0, 0, 4)))
    return Group(*parts)
