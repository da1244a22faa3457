"""The laws that are broken as well: those that fail alike together, with a case that replays it."""

import re
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from linverify.reports.rule import Line
from linverify.reports.telling import alike
from linverify.reports.text import STYLES, words
from linverify.verdict import Failure, PropertyResult

_NUMBER = re.compile(r"\d+")


def further_failures(found: Sequence[PropertyResult], told: Sequence[PropertyResult] = ()) -> RenderableType:
    """Return a paragraph for every status and diagnosis; the whole of each failure is in the other reports.

    Args:
        found: the failures.
        told: those that stand above in full.
    """
    groups: dict[tuple[str, str], list[PropertyResult]] = {}
    same = [p for p in found if alike(p, told)]
    for result in found:
        if result.failure is not None and result not in same:
            groups.setdefault((result.status, _said(result.failure)), []).append(result)
    parts: list[RenderableType] = [Line(), Text("also", style="bold")]
    if same:
        parts.append(_title(same))
        parts.append(Padding(Text("the results named above are wrong in their cases, too"), (0, 0, 0, 4)))
    for members in groups.values():
        failure = members[0].failure
        assert failure is not None
        parts.append(_title(members))
        parts.append(Padding(Text.assemble(_what(failure), "\n", (failure.case_id, "dim")), (0, 0, 0, 4)))
    return Group(*parts)


def _title(members: Sequence[PropertyResult]) -> Text:
    status = members[0].status
    return Text.assemble((words(status), STYLES[status]), "  ", ", ".join(words(m.name) for m in members))


def _what(failure: Failure) -> str:
    return failure.diagnosis or failure.evidence.message or words(failure.evidence.kind)


def _said(failure: Failure) -> str:
    """What is said, whichever result and lengths it is said of."""
    name = "the final state" if failure.evidence.result == "state" else failure.evidence.result
    return _NUMBER.sub("#", _what(failure).removeprefix(name).partition(": ")[0])
