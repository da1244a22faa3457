"""The worst share of the budget of every result in every dtype."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from linverify.reports.text import share
from linverify.verdict import BudgetUse


def budget_table(uses: Sequence[BudgetUse]) -> "Shares":
    """Return results down, dtypes across; a dtype's heading names the class it was judged by where that differs.

    A cell is the largest share over all cases; more than 1.00 is a violation. Results and dtypes keep the order in
    which they come.
    """
    return Shares(tuple(uses))


@dataclass(frozen=True, slots=True)
class Shares:
    """The table; a line a number where the console has no room for it."""

    uses: tuple[BudgetUse, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw."""
        headings = list(dict.fromkeys(_heading(u) for u in self.uses))
        worst: dict[tuple[str, str], float] = {}
        for u in self.uses:
            worst[u.result, _heading(u)] = max(u.worst, worst.get((u.result, _heading(u)), 0.0))
        results = list(dict.fromkeys(u.result for u in self.uses))
        table = _table("share of the budget", headings)
        for result in results:
            table.add_row(result, *(_cell(worst.get((result, heading))) for heading in headings))
        if Measurement.get(console, options.update(max_width=1000), table).maximum > options.max_width:
            table = _table("of the budget", [""])
            for (result, heading), value in worst.items():
                table.add_row(f"{result} {heading}", _cell(value))
        yield table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(title, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _heading(use: BudgetUse) -> str:
    same = use.precision_class in ("", use.dtype)
    return use.dtype if same else f"{use.dtype} as {use.precision_class}"


def _cell(worst: float | None) -> Text:
    return Text(share(worst), style="bold red" if worst is not None and not worst <= 1 else "")
