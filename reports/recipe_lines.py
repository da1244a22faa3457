"""Which precision recipe the kernel computes by, and which cases used most of their budget."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from linverify.insight import RecipeMatch, Residual, WorstCase
from linverify.reports.recipe_sentence import recipe_sentence, residual_sentence
from linverify.reports.text import counted, share

_WORST = 3


def recipe_lines(found: Sequence[RecipeMatch], residuals: Sequence[Residual] = ()) -> RenderableType:
    """Return a sentence a dtype, and one for every result of which a matched recipe leaves too much."""
    left = [r for r in residuals if r.share > 1]
    return Group(
        Text("precision recipe", style="bold"),
        *(Padding(Text(recipe_sentence(m)), (0, 0, 0, 2)) for m in found),
        *(Padding(Text(residual_sentence(r), style="yellow"), (0, 0, 0, 2)) for r in left),
    )


def worst_lines(found: Sequence[WorstCase]) -> RenderableType:
    """Return the cases that used most of their budget, each to be replayed."""
    ranked = sorted(found, key=lambda w: -w.share)
    grid = Table.grid(padding=(0, 2))
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for w in ranked[:_WORST]:
        grid.add_row(f"  {w.result}", w.dtype, Text(share(w.share), style="bold red" if w.share > 1 else ""), w.case_id)
    rest = len(ranked) - _WORST
    more = [Text(f"  {counted(rest, 'more result')} in the record", style="dim")] if rest > 0 else []
    return Group(Text("largest shares of the budget", style="bold"), grid, *more)
