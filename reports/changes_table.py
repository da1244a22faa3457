"""Two runs compared, on the console: what got worse, what got better, and whether the runs can be compared at all."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify.reports.changes import KINDS, REGRESSIONS, Change, Changes
from linverify.reports.sentence import sentence
from linverify.reports.text import STYLES, counted, share, words

_DRIFTS = 8
_AT_LENGTH = ("broken", "marginal", "appeared")  # the others are told by name alone


def changes_table(changes: Changes) -> RenderableType:
    """Return the comparison: the count, the changes by kind, the largest drifts, and how the runs differ."""
    targets = list(dict.fromkeys(c.result.target for c in changes.found))
    parts: list[RenderableType] = [Text(summary(changes), style="bold red" if regressions(changes) else "bold")]
    if len(targets) == 1:
        parts.append(Text(f"  {targets[0]}"))
    for kind, meaning in KINDS.items():
        of_kind = [c for c in changes.found if c.kind == kind]
        if of_kind:
            style = "bold red" if kind in REGRESSIONS else "yellow" if kind == "marginal" else "bold"
            parts += [Text(), Text(f"{kind} ({meaning})", style=style)]
            told = _at_length if kind in _AT_LENGTH else _by_name
            parts += told(of_kind, several=len(targets) > 1)
    if changes.drifts:
        parts += [Text(), _drift_table(changes)]
    if changes.circumstances:
        parts += [Text(), Text("the runs themselves differ", style="bold")]
        parts += [Text(f"  {name}: {a} -> {b}") for name, a, b in changes.circumstances]
    return Group(*parts)


def regressions(changes: Changes) -> int:
    """Return how many properties got worse beyond doubt."""
    return sum(c.kind in REGRESSIONS for c in changes.found)


def summary(changes: Changes) -> str:
    """Return one line: regressions, what got better, what is broken as before."""
    better = sum(c.kind in ("fixed", "gained") for c in changes.found)
    broken = sum(p.required and p.status == "violation" for r in changes.after.results for p in r.properties)
    still = broken - sum(c.kind == "broken" for c in changes.found)
    parts = [counted(regressions(changes), "regression") if regressions(changes) else "no regression"]
    parts += [f"{better} better"] if better else []
    parts += [f"{still} broken as before"] if still else []
    return ", ".join(parts)


def ratio(before: float, after: float) -> str:
    """Return the growth of a share; "-" where there is no number for it."""
    return f"{after / before:.2f}" if before and math.isfinite(after) and math.isfinite(before) else "-"


def _at_length(found: Sequence[Change], *, several: bool) -> Iterator[RenderableType]:
    for c in found:
        status = Text.assemble(f"{words(c.before)} -> ", (words(c.after), STYLES.get(c.after, "")))
        where = f"  {c.result.target}" if several else ""
        yield Padding(Text.assemble((words(c.name), "bold"), "  ", status, where), (0, 0, 0, 2))
        if c.found is not None and c.found.failure is not None:
            yield Padding(Text(sentence(c.found)), (0, 0, 0, 4))
            yield Padding(Text(c.found.failure.case_id, style="dim"), (0, 0, 0, 4))


def _by_name(found: Sequence[Change], *, several: bool) -> Iterator[RenderableType]:
    """Yield one paragraph for all that have the target, the statuses and the reason in common."""

    def common(c: Change) -> tuple[str, str, str, str]:
        return c.result.target, c.before, c.after, c.found.note if c.found else ""

    for (target, before, after, note), members in groupby(sorted(found, key=common), common):
        names = ", ".join(words(c.name) for c in members)
        why = f" ({note})" if note else ""
        where = f"{target}  " if several else ""
        text = Text.assemble((f"{where}{words(before)} -> {words(after)}: ", "dim"), names, (why, "dim"))
        yield Padding(text, (0, 0, 0, 2))


def _drift_table(changes: Changes) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("share of the budget", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    for heading in ("before", "after", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len({d.result.target for d in changes.drifts}) > 1
    for d in changes.drifts[:_DRIFTS]:
        name = f"{d.name}  {d.result.target}" if several else d.name
        style = "bold red" if d.after > 1 >= d.before else ""
        table.add_row(name, d.dtype, share(d.before), Text(share(d.after), style=style), ratio(d.before, d.after))
    rest = len(changes.drifts) - _DRIFTS
    return Group(table, *([Text(f"and {counted(rest, 'smaller change')}", style="dim")] if rest > 0 else []))
