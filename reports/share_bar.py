"""The share of the budget as a bar with the line at 1.00 drawn in."""

import math
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

_LINE_AT = 0.75  # of the bar's width, so that what lies beyond the line can be seen
_UNICODE = ("━", "│", "▶")
_ASCII = ("=", "|", ">")


@dataclass(frozen=True, slots=True)
class ShareBar:
    """A bar for one share of the budget; nothing where no budget applies.

    Attributes:
        share: 1 is the line; None draws nothing; what exceeds the bar ends in an arrow.
        width: in characters, at most; a narrow table shrinks it.
    """

    share: float | None
    width: int = 24

    def cells(self, width: int, *, ascii_only: bool = False) -> str:
        """Return the bar as text of exactly `width` characters."""
        fill, line, arrow = _ASCII if ascii_only else _UNICODE
        if self.share is None or math.isnan(self.share):
            return " " * width
        at = max(1, round(_LINE_AT * width))
        beyond = self.share > 1
        length = min(float(width), self.share * at)
        filled = max(round(length), 1 if self.share > 0 else 0)
        filled = max(filled, at + 2) if beyond else min(filled, at)
        bar = [fill] * min(filled, width) + [" "] * (width - filled)
        bar[min(at, width - 1)] = line
        if self.share * at > width:
            bar[-1] = arrow
        return "".join(bar[:width])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw in green, yellow above half of the budget, red beyond the line."""
        width = min(self.width, options.max_width)
        colour = "green" if (self.share or 0) <= 0.5 else "yellow" if (self.share or 0) <= 1 else "red"
        yield Segment(self.cells(width, ascii_only=options.ascii_only), console.get_style(colour))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how far a table may shrink the bar."""
        return Measurement(min(6, options.max_width), min(self.width, options.max_width))
