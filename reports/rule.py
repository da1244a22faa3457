"""A line across the console, and a dot between words, for terminals that have neither."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text


class Line:
    """A dim line as wide as the console; rich's own rule without a title is not plain where it should be."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw."""
        yield Segment(("-" if options.ascii_only else "─") * options.max_width + "\n", console.get_style("dim"))


@dataclass(frozen=True, slots=True)
class Dotted:
    """A text whose parts are held apart by middle dots."""

    text: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw, with hyphens where there are no such dots."""
        text = self.text.copy()
        if options.ascii_only:
            text.plain = text.plain.replace(" · ", " - ")
        yield text
