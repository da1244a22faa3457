"""What all broken laws say together, before each speaks for itself."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linverify.reports.rule import Line
from linverify.reports.text import counted, words
from linverify.verdict import Alike, Synthesis

TITLE = "In short"
_NAMED = 3


def synthesis_panel(found: Synthesis) -> RenderableType:
    """Return the panel: results, what follows, where to look, what the cases need, what speaks against what."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold", min_width=11)
    grid.add_column(overflow="fold")
    for label, value in rows(found):
        grid.add_row(label, Text(value))
    return Group(Line(), Text(TITLE.upper(), style="bold"), grid)


def rows(found: Synthesis) -> list[tuple[str, str]]:
    """Return labels and values in the order in which every report gives them; of one broken law, what its panel lacks."""
    several = len(found.laws) > 1
    if not (several or found.reading or found.against):
        return []
    said = [("broken", f"{counted(len(found.laws), 'law')}: {named(found.laws)}")] if several else []
    said += [(label, ", ".join(names)) for label, names in (("wrong", found.wrong), ("right", found.right)) if names]
    said += [("so", text) for text in found.reading]
    if several:
        labels = ["look first", *["then"] * len(found.leads)]
        said += [(label, _with_laws(lead)) for label, lead in zip(labels, found.leads, strict=False)]
        said += [
            (label, "; ".join(what)) for label, what in (("all need", found.needs), ("not needed", found.spare)) if what
        ]
    if found.against:
        what = "; ".join(_with_laws(a) for a in found.against)
        said.append(("unlikely", f"{what}; the laws in brackets hold on the case that fails"))
    return said


def named(laws: Sequence[str]) -> str:
    """Return the first few names, and how many there are besides."""
    rest = len(laws) - _NAMED
    shown = laws if rest <= 1 else laws[:_NAMED]
    more = f" and {rest} more" if rest > 1 else ""
    return ", ".join(words(name) for name in shown) + more


def _with_laws(said: Alike) -> str:
    return f"{said.text} ({named(said.laws)})"
