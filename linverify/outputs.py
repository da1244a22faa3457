"""What a run leaves behind beside the console: the files and the CI output that the options ask for."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from linverify.errors import UsageError
from linverify.options import file_option
from linverify.reports import json_file
from linverify.reports.changes import Changes
from linverify.reports.files import write_whole
from linverify.reports.github import annotations, job_summary
from linverify.reports.html import html
from linverify.reports.junit import junit
from linverify.reports.sarif import sarif
from linverify.verdict import Report

Json = Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the whole run to this file.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="F", help="Write a page to read in a browser.")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="F", help="Write JUnit XML for a CI system.")]
Sarif = Annotated[Path | None, typer.Option("--sarif", metavar="F", help="Write SARIF 2.1.0 for code scanning.")]
Github = Annotated[bool, typer.Option("--github", help="Print GitHub annotations; append to the job summary.")]

SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Which formats to write, and where.

    Attributes:
        json, html, junit, sarif: files; None writes none.
        github: print annotations, and append a job summary to the file that GITHUB_STEP_SUMMARY names.
    """

    json: Path | None = None
    html: Path | None = None
    junit: Path | None = None
    sarif: Path | None = None
    github: bool = False

    def __post_init__(self) -> None:
        """Find out before the run what could not be written after it.

        Raises:
            UsageError: a folder is missing or cannot be written, or two formats go to one file.
        """
        files: dict[Path, str] = {}
        for option, path in self.files():
            file_option(option, path)
            if path.resolve() in files:
                raise UsageError(f"{option} {path}: {files[path.resolve()]} goes to the same file")
            files[path.resolve()] = option

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield every option that is given, with its path."""
        for option, path in (
            ("--json", self.json),
            ("--html", self.html),
            ("--junit", self.junit),
            ("--sarif", self.sarif),
        ):
            if path is not None:
                yield option, path

    def words(self) -> list[str]:
        """Return the options as words of a command line."""
        return [*(word for option, path in self.files() for word in (option, str(path))), *["--github"] * self.github]

    def write(self, report: Report, changes: Changes | None = None) -> None:
        """Write every format asked for; one that fails does not stop the others.

        Raises:
            UsageError: a file cannot be written.
        """
        failed = []
        makers: dict[str, Callable[[], str]] = {
            "--json": lambda: json_file.json_text(report),
            "--html": lambda: html(report, changes),
            "--junit": lambda: junit(report),
            "--sarif": lambda: sarif(report, changes),
        }
        for option, path in self.files():
            try:
                write_whole(path, makers[option]())
            except OSError as error:
                failed.append(f"{option} {path}: {error.strerror or error}")
        if self.github:
            failed += _append_summary(job_summary(report, changes))
            sys.stdout.write(annotations(report))
            sys.stdout.flush()
        if failed:
            raise UsageError("; ".join(failed))


class Terminal(Console):
    """Standard output. Rich's own console ends the process with code 1 when the reader of a pipe goes away, pass or not."""

    def on_broken_pipe(self) -> None:
        """Say no more; what is being done goes on, and its exit code stays."""
        self.quiet = True
        mute()


def mute() -> None:
    """Let what is printed from now on go nowhere: who read our output has gone, which changes no verdict."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _append_summary(text: str) -> list[str]:
    """Append to the job summary where there is one; return what went wrong."""
    path = os.environ.get(SUMMARY)
    if not path:
        return []
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
    except OSError as error:
        return [f"{SUMMARY}={path}: {error.strerror or error}"]
    return []
