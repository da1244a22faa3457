"""The worst share of the budget of every result in every dtype."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from linverify.reports.text import share
from linverify.verdict import BudgetUse


def budget_table(uses: Sequence[BudgetUse]) -> Table:
    """Return results down, dtypes across; a dtype's heading names the class it was judged by where that differs.

    A cell is the largest share over all cases; more than 1.00 is a violation. Results and dtypes keep the order in
    which they come.
    """
    headings = {_heading(u): None for u in uses}
    results = list(dict.fromkeys(u.result for u in uses))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("share of the budget", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for result in results:
        worst: dict[str, float] = {}
        for u in uses:
            if u.result == result:
                worst[_heading(u)] = max(u.worst, worst.get(_heading(u), 0.0))
        table.add_row(result, *(_cell(worst.get(heading)) for heading in headings))
    return table


def _heading(use: BudgetUse) -> str:
    same = use.precision_class in ("", use.dtype)
    return use.dtype if same else f"{use.dtype} as {use.precision_class}"


def _cell(worst: float | None) -> Text:
    return Text(share(worst), style="bold red" if worst is not None and not worst <= 1 else "")
