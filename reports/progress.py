"""What is being asked right now, on a terminal; silent in a pipe."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from linverify.reports.text import counted, share, status_text, words
from linverify.verdict import Configuration, PropertyResult, Status, TargetResult


class Progress:
    """One changing line on standard error, and one lasting line for every violation as soon as it is known."""

    def __init__(self, console: Console) -> None:
        """Show on `console`, if it is a terminal that can move its cursor."""
        self._console = console
        self._shown = console.is_terminal and not console.is_dumb_terminal
        self._started = time.monotonic()
        self._target = ""
        self._property = "starting"
        self._case = ""
        self._count = 0
        self._configurations = 0
        self._done = 0
        self._planned = 0
        self._worst: float | None = None
        self._live = Live(console=console, transient=True, refresh_per_second=8, get_renderable=self._line)

    def __enter__(self) -> Self:
        """Start to draw."""
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the line away."""
        if self._shown:
            self._live.stop()

    def paused(self, show: Callable[[TargetResult], None]) -> Callable[[TargetResult], None]:
        """Return `show`, during which the changing line is out of the way."""

        def show_alone(result: TargetResult) -> None:
            if self._shown:
                self._live.stop()
            show(result)
            if self._shown:
                self._live.start()

        return show_alone

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        """Begin with another target."""
        self._target = f"{target} ({operator})"
        self._planned, self._done, self._count, self._worst = len(properties), 0, 0, None
        self._started = time.monotonic()

    def property_started(self, name: str) -> None:
        """Begin with another property."""
        self._property, self._case = words(name), ""

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        """Count a case."""
        self._property, self._case = words(name), case_id
        self._count += 1
        if share is not None:
            self._worst = max(share, self._worst or 0.0)

    def property_finished(self, result: PropertyResult) -> None:
        """Count a property; a violation is said at once."""
        self._done += 1
        if self._shown and result.status is Status.VIOLATION:
            case = result.failure.case_id if result.failure else ""
            self._live.console.print(Text.assemble(status_text(result.status), f"  {words(result.name)}  {case}"))

    def target_finished(self, result: TargetResult) -> None:
        """Say nothing: the report follows."""

    def configuration_settled(self, found: Configuration) -> None:
        """Count a configuration; a wrong one is said at once."""
        self._property, self._case = "configurations", found.configuration
        self._configurations += 1
        if self._shown and found.status is Status.VIOLATION:
            said = f"  {found.kernel.rpartition('.')[2]}  {found.configuration}"
            self._live.console.print(Text.assemble(status_text(found.status), said))

    def note(self, text: str) -> None:
        """Say something that cannot wait."""
        if self._shown:
            self._live.console.print(Text(text, style="dim"))

    def _line(self) -> Text:
        seconds = time.monotonic() - self._started or 1.0
        parts = [self._target, f"{self._done}/{self._planned} properties", self._property, counted(self._count, "case")]
        parts += [f"{self._count / seconds:.1f}/s", f"worst {share(self._worst)}"]
        parts += [counted(self._configurations, "configuration") if self._configurations else "", self._case]
        return Text("  ".join(part for part in parts if part), no_wrap=True, overflow="ellipsis", style="dim")
