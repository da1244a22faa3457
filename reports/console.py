"""The report on the console: the verdict, the tables, the limits, every failure, and where the time went."""

import io
import shlex
from collections.abc import Iterator, Mapping

from rich.console import Console, RenderableType
from rich.text import Text

from linverify.reports.budget_table import budget_table
from linverify.reports.configurations_table import configurations_table
from linverify.reports.failure_panel import failure_panel
from linverify.reports.further_failures import further_failures
from linverify.reports.headline import headline
from linverify.reports.insight_parts import insight_parts
from linverify.reports.limits import notes, refusals
from linverify.reports.properties_table import properties_table
from linverify.reports.synthesis_panel import rows, synthesis_panel
from linverify.reports.telling import telling
from linverify.reports.text import duration, words
from linverify.verdict import PropertyResult, TargetResult


def print_target(console: Console, result: TargetResult, *, replay_options: str = "") -> None:
    """Print all of one target.

    Args:
        console: where; a pipe, NO_COLOR and a dumb terminal get plain text.
        result: the records.
        replay_options: what the user gave beside target and operator, as it must be repeated to replay a case.
    """
    console.print(headline(result))
    for part in _parts(result):
        console.print()
        console.print(part)
    shown, rest = telling(result.properties)
    for found in shown:
        console.print()
        print_failure(console, result, found, replay_options=replay_options)
    if rest:
        console.print()
        console.print(further_failures(rest, shown))
    if result.seconds:
        console.print()
        console.print(Text(timing_line(result.seconds), style="dim"))


def _parts(result: TargetResult) -> Iterator[RenderableType]:
    """Yield what stands between the verdict and the failures."""
    if result.properties:
        yield properties_table(result.properties)
    if result.budget:
        yield budget_table(result.budget)
    yield from insight_parts(result.insight, result.properties)
    if result.configurations:
        yield configurations_table(result.configurations)
    if result.refusals:
        yield refusals(result.refusals)
    if result.notes:
        yield notes(result.notes)
    if result.synthesis is not None and rows(result.synthesis):
        yield synthesis_panel(result.synthesis)


def print_failure(console: Console, result: TargetResult, found: PropertyResult, *, replay_options: str = "") -> None:
    """Print the panel of one failure and, on one unbroken line, the command that replays it."""
    if found.failure is None:
        return
    console.print(failure_panel(result.target, result.operator, found, found.failure))
    command = replay_command(result, found, replay_options)
    console.print(Text.assemble(("replay       ", "bold"), command), soft_wrap=True)


def replay_command(result: TargetResult, found: PropertyResult, options: str = "") -> str:
    """Return the command line that asks the target the failing case of a property again."""
    case_id = found.failure.case_id if found.failure else ""
    op = f"--op {shlex.quote(result.operator)}" if "--op" not in options.split() else ""
    parts = [
        "linverify replay",
        shlex.quote(case_id),
        "--target",
        shlex.quote(result.target),
        op,
        f"--property {found.name}",
    ]
    return " ".join(part for part in [*parts, options] if part)


def timing_line(seconds: Mapping[str, float]) -> str:
    """Return where the wall time went, compilation and running apart from the judging."""
    parts = [f"{words(k)} {duration(v)}" for k, v in seconds.items() if k != "total" and v >= 0.05]
    if "total" in seconds:
        parts.append(f"in all {duration(seconds['total'])}")
    return "time: " + ", ".join(parts)


def plain(width: int = 100) -> Console:
    """Return a console that collects uncoloured text; read it with ``.file.getvalue()``."""
    return Console(
        file=io.StringIO(), width=width, no_color=True, color_system=None, force_terminal=False, legacy_windows=False
    )


def failure_as_text(result: TargetResult, found: PropertyResult, *, replay_options: str = "", width: int = 100) -> str:
    """Return one failure as plain text, for a log or a test runner."""
    console = plain(width)
    print_failure(console, result, found, replay_options=replay_options)
    stream = console.file
    return stream.getvalue().strip("\n") if isinstance(stream, io.StringIO) else ""
