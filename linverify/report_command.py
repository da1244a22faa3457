"""``linverify report``: a recorded run in any format, or two runs compared."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from linverify.errors import UsageError
from linverify.outputs import Outputs, Terminal, mute, writes
from linverify.reports import json_file
from linverify.reports.changes import Changes, compare
from linverify.reports.changes_table import changes_table
from linverify.reports.console import print_target
from linverify.verdict import Report


@writes
def report(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE.json...", help="A run, or two: the earlier and the later one.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the records.")] = False,
    *,
    outputs: Outputs,
) -> int:
    """Show a run that --json recorded, in any format; or compare two, regressions first.

    The exit code is that of the run, of two that of the later one; 3 also where the later run holds but no longer judges what
    the earlier one did. Formats other than the console describe the later run, and HTML, SARIF and GitHub what changed.
    """
    if schema:
        sys.stdout.write(json_file.schema())
        return 0
    runs = [recorded(path) for path in files or ()]
    if len(runs) not in (1, 2):
        raise UsageError(f"expected one FILE.json, or two to compare, got {len(runs)}")
    run, changes = runs[-1], compare(*runs) if len(runs) == 2 else None
    _show(run, changes)
    try:
        outputs.write(run, changes)
        sys.stdout.flush()
    except BrokenPipeError:
        mute()
    return run.exit_code if changes is None else changes.exit_code


def _show(run: Report, changes: Changes | None) -> None:
    console = Terminal()
    if changes is not None:
        console.print(changes_table(changes))
        return
    for position, result in enumerate(run.results):
        if position:
            console.print()
        print_target(console, result, replay_options=run.replay_options)


def recorded(path: Path, option: str = "") -> Report:
    """Read the record of a run.

    Args:
        path: of the record.
        option: that named it, for messages.

    Raises:
        UsageError: there is no such file, or it is no record.
    """
    before = f"{option}: " if option else ""
    try:
        return json_file.read(path)
    except OSError as error:
        raise UsageError(f"{before}cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{before}{path}: {error}") from None
