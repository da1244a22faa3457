"""Two kernels side by side: what separates them, in which result, and in which region."""

import math
import shlex
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify.comparison import Comparison, Row, Side, decided
from linverify.reports.limits import notes
from linverify.reports.text import STYLES, counted, number, share

_REGIONS = 6


def print_comparison(console: Console, found: Comparison) -> None:
    """Print both verdicts, the sentence, errors by result and dtype, and the regions that differ most.

    "error A/B" is the median over the cases of A's root mean square error over B's: below 1 A is nearer, and bold where chance
    does not explain it. Case ids and commands stay on one line, however long.
    """
    console.print(Text(f"{found.operator}: {counted(found.cases, 'case')} answered by both"))
    for name, side in zip("AB", found.sides, strict=True):
        console.print()
        _print_side(console, name, side, found.operator)
    console.print()
    console.print(Text(found.sentence, style="bold"))
    if found.rows:
        console.print()
        console.print(_table(("result", "dtype"), found.rows))
    differing = [r for r in found.regions if r.ratio != 1.0][:_REGIONS]
    if differing:
        console.print()
        console.print(_table(("where they differ most",), differing))
        console.print(Text.assemble(("farthest apart  ", "bold"), differing[0].case_id), soft_wrap=True)
    if found.notes:
        console.print()
        console.print(notes(found.notes))


def _print_side(console: Console, name: str, side: Side, operator: str) -> None:
    title = Text.assemble((f"{name}  {side.verdict.upper()}", STYLES[side.verdict]), "  ", (side.target, "bold"))
    console.print(title, soft_wrap=True)
    facts = [
        f"worst share {share(side.worst)}" if side.worst is not None else "",
        f"{counted(side.broken, 'case')} beyond the budget" if side.broken else "",
        f"{counted(side.refused, 'case')} refused" if side.refused else "",
    ]
    if any(facts):
        console.print(Text("   " + ", ".join(f for f in facts if f)))
    if side.broken:
        console.print(Text(f"   {side.case_id}"), soft_wrap=True)
        console.print(Padding(Text(side.diagnosis), (0, 0, 0, 3)))
        console.print(Text(f"   next: linverify check {shlex.quote(side.target)} --op {operator}"), soft_wrap=True)


def _table(headings: Sequence[str], found: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for heading in ("cases", "error A/B", "A nearer", "B", "share of A", "B"):
        table.add_column(heading, justify="right", no_wrap=True)
    clear = decided(found)
    for row in found:
        table.add_row(
            *(row.names if len(headings) == 2 else ("=".join(row.names),)),
            str(row.cases),
            Text(_ratio(row.ratio), style="bold" if row in clear else ""),
            *(str(count) for count in row.nearer),
            *(Text(share(worst), style="" if worst <= 1 else "bold red") for worst in row.worst),
        )
    return table


def _ratio(ratio: float) -> str:
    return "inf" if math.isinf(ratio) else number(ratio)
