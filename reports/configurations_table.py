"""The sweep of autotuning configurations: how many of each kernel are right, and the name of every one that is not."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify.reports.text import status_text
from linverify.verdict import Configuration, Status

_COUNTED = (
    (Status.PASS, "right"),
    (Status.VIOLATION, "wrong"),
    (Status.MARGINAL, "in doubt"),
    (Status.REFUSED, "refused"),
)
_SHOWN = 24


def configurations_table(found: Sequence[Configuration]) -> RenderableType:
    """Return a row for each kernel, and below it a line for each configuration that is wrong or in doubt.

    One configuration forced on several cases counts once, by its worst status.
    """
    worst = _worst(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("autotuned kernel", overflow="fold")
    for _, word in _COUNTED:
        table.add_column(word, justify="right", no_wrap=True)
    for kernel in dict.fromkeys(c.kernel for c in worst):
        mine = [c.status for c in worst if c.kernel == kernel]
        table.add_row(kernel.rpartition(".")[2], *(str(mine.count(s) or "-") for s, _ in _COUNTED))
    wrong = [c for c in worst if c.status in (Status.VIOLATION, Status.MARGINAL)]
    lines: list[RenderableType] = []
    for c in wrong[:_SHOWN]:
        lines.append(Text.assemble(status_text(c.status), f"  {c.kernel.rpartition('.')[2]}  {c.configuration}"))
        lines.append(Padding(Text.assemble(c.note, "\n", (c.case_id, "dim")), (0, 0, 0, 4)))
    if wrong[_SHOWN:]:
        lines.append(Text(f"and {len(wrong) - _SHOWN} more, which --json lists", style="dim"))
    return Group(table, *lines)


def _worst(found: Sequence[Configuration]) -> list[Configuration]:
    order = [Status.PASS, Status.REFUSED, Status.MARGINAL, Status.VIOLATION]
    kept: dict[tuple[str, str], Configuration] = {}
    for c in found:
        known = kept.get((c.kernel, c.configuration))
        if known is None or order.index(c.status) > order.index(known.status):
            kept[c.kernel, c.configuration] = c
    return list(kept.values())
