"""Numbers, durations and words as every report spells them, and the colour of each status."""

import math
from collections.abc import Mapping

from rich.text import Text

STYLES: dict[str, str] = {
    "pass": "green",
    "violation": "bold red",
    "marginal": "yellow",
    "reported": "yellow",
    "refused": "cyan",
    "not_offered": "dim",
    "not_applicable": "dim",
    "unchecked": "magenta",
}


def words(name: str) -> str:
    """Return a status, property or kind as people read it."""
    return name.replace("_", " ")


def status_text(status: str) -> Text:
    """Return a status in its colour; the word alone carries the meaning, so that no colour is needed."""
    return Text(words(status), style=STYLES.get(status, ""))


def number(x: float | None) -> str:
    """Return `x` with three significant digits; "none" where there is none."""
    if x is None:
        return "none"
    return "0" if x == 0 else f"{x:.3g}"


def share(x: float | None) -> str:
    """Return a share of the budget, two decimals around the line.

    The line is at 1.00: a share beyond it never reads as if it were on it. "-" where no budget applies.
    """
    if x is None or not math.isfinite(x):
        return "-" if x is None else "inf"
    if 1.0 < x < 1.005:
        return ">1.00"
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:.1e}"


def percent(x: float) -> str:
    """Return a share of a whole; what is there never reads as nothing."""
    return "<1 %" if 0 < x < 0.005 else f"{100 * x:.0f} %"


def stages(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the stages that reach half a percent, and all others together where they do."""
    shown = [(words(name), part) for name, part in shares.items() if part >= 0.005]
    rest = sum(part for part in shares.values() if part < 0.005)
    return [*shown, ("others", rest)] if rest >= 0.005 else shown


def duration(seconds: float) -> str:
    """Return a wall time in the unit that reads best."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 599.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return "1 case", "3 cases"."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
