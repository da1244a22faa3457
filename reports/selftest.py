"""A self-test on the console: how many mutants the check caught, by kind of mistake and by property, and what survived."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify.reports.text import counted, duration
from linverify.selftest.score import Outcome, SelfTest, TargetScore, by_family, by_law, share, tallied

_COLUMNS = (Outcome.CAUGHT, Outcome.SURVIVED, Outcome.EQUIVALENT, Outcome.REFUSED)


def print_selftest(console: Console, found: SelfTest) -> None:
    """Print the whole of a self-test."""
    parts: list[RenderableType] = [headline(found)]
    if any(t.mutants for t in found.targets):
        parts += [targets_table(found.targets), family_table(found.targets), law_table(found)]
    parts += [survivor(t, i) for t in found.targets for i, m in enumerate(t.mutants) if m.outcome is Outcome.SURVIVED]
    for position, part in enumerate(parts):
        if position:
            console.print()
        console.print(part)


def headline(found: SelfTest) -> Text:
    """Return the score, and what does not count."""
    tally = tallied(found.targets)
    counts, caught = tally[Outcome.CAUGHT] + tally[Outcome.SURVIVED], share(tally)
    unjudged = sum(t.unjudged for t in found.targets)
    text = Text()
    if caught is None:
        text.append("no mutant was judged", "magenta")
    else:
        style = "green" if not tally[Outcome.SURVIVED] else "bold red"
        text.append(f"{percent(caught)} caught", style)
        text.append(f": {tally[Outcome.CAUGHT]} of {counted(counts, 'mutant')} that compute something else")
    text.append(f"\nbeside them {tally[Outcome.EQUIVALENT]} equivalent, {tally[Outcome.REFUSED]} that refuse")
    if unjudged:
        text.append(f", {unjudged} not judged", "magenta")
    return text


def targets_table(targets: Sequence[TargetScore]) -> Table:
    """Return one row a target."""
    table = _table("target")
    table.add_column("time", justify="right", no_wrap=True)
    for t in targets:
        several = f"\n({', '.join(t.operators)})" if len(t.operators) > 1 else ""
        table.add_row(t.target + several, *_counts(t.tally), _percent(share(t.tally)), duration(t.seconds))
    return table


def family_table(targets: Sequence[TargetScore]) -> Table:
    """Return one row a kind of mistake."""
    table = _table("kind of mistake")
    for row in by_family(targets):
        table.add_row(row.label, *_counts(row.tally), _percent(row.share))
    return table


def law_table(found: SelfTest) -> Table:
    """Return what each property caught: first, and, where each was asked, in all and alone."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("caught first by", no_wrap=True)
    for name in ("mutants", *(("in all", "share", "alone") if found.each else ())):
        table.add_column(name, justify="right", no_wrap=True)
    counting = tallied(found.targets)[Outcome.CAUGHT] + tallied(found.targets)[Outcome.SURVIVED]
    for row in by_law(found.targets):
        more = (str(row.all), percent(row.all / counting), str(row.alone or "-")) if found.each else ()
        table.add_row(row.law.replace("_", " "), str(row.first or "-"), *more)
    return table


def survivor(target: TargetScore, position: int) -> RenderableType:
    """Return what a reader needs to study a mutant that was not caught."""
    m = target.mutants[position]
    where = Text.assemble(("survived", "bold red"), f"  {target.file}, line {m.line}  {m.family}: {m.what}")
    diff = Text()
    for line in m.diff.splitlines():
        diff.append(line + "\n", "red" if line.startswith("-") else "green")
    diff.append(f"{m.operator}: {m.reason}, on {m.case_id}", "dim")
    return Group(where, Padding(diff, (0, 0, 0, 2)))


def percent(x: float) -> str:
    """Return a share with one decimal; what is not all never reads as all."""
    return "100 %" if x == 1.0 else f"{min(100 * x, 99.9):.1f} %"


def _percent(x: float | None) -> str:
    return "-" if x is None else percent(x)


def _counts(tally: Mapping[Outcome, int]) -> list[str]:
    return [str(tally.get(outcome, 0) or "-") for outcome in _COLUMNS]


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(first, overflow="fold", min_width=18)
    for name in (*_COLUMNS, "share"):
        table.add_column(name, justify="right", no_wrap=True)
    return table
