"""What a run leaves behind beside the console: the files and the CI output that the options ask for."""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console

from linverify import registry
from linverify.errors import LinverifyError, UsageError
from linverify.options import file_option
from linverify.reports._format import Format
from linverify.reports.changes import Changes
from linverify.reports.files import write_whole
from linverify.reports.github import annotations, job_summary
from linverify.verdict import Report

_GITHUB = Annotated[bool, typer.Option("--github", help="Print GitHub annotations; append to the job summary.")]


@functools.cache
def formats() -> dict[str, Format]:
    """Return every report format by the name of its option; most files of their room assign none.

    Raises:
        LinverifyError: two files make the same one.
    """
    found: dict[str, Format] = {}
    for module in registry.modules("linverify.reports"):
        item = getattr(module, "FORMAT", None)
        if isinstance(item, Format) and item.name in found:
            raise LinverifyError(f"two report formats are called {item.name!r}, one in {module.__name__}; rename it")
        if isinstance(item, Format):
            found[item.name] = item
    return dict(sorted(found.items()))


SUMMARY = "GITHUB_STEP_SUMMARY"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Which formats to write, and where.

    Attributes:
        files: by the name of the format.
        github: print annotations, and append a job summary to the file that GITHUB_STEP_SUMMARY names.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    github: bool = False

    def __post_init__(self) -> None:
        """Find out before the run what could not be written after it.

        Raises:
            UsageError: a folder is missing or cannot be written, or two formats go to one file.
        """
        taken: dict[Path, str] = {}
        for name, path in self.files.items():
            file_option(f"--{name}", path)
            if path.resolve() in taken:
                raise UsageError(f"--{name} {path}: --{taken[path.resolve()]} goes to the same file")
            taken[path.resolve()] = name

    def words(self) -> list[str]:
        """Return the options as words of a command line."""
        given = [word for name, path in self.files.items() for word in (f"--{name}", str(path))]
        return [*given, *["--github"] * self.github]

    def write(self, report: Report, changes: Changes | None = None) -> None:
        """Write every format asked for; one that fails does not stop the others.

        Raises:
            UsageError: a file cannot be written.
        """
        failed = []
        for name, path in self.files.items():
            try:
                write_whole(path, formats()[name].text(report, changes))
            except OSError as error:
                failed.append(f"--{name} {path}: {error.strerror or error}")
        if self.github:
            failed += _append_summary(job_summary(report, changes))
            sys.stdout.write(annotations(report))
            sys.stdout.flush()
        if failed:
            raise UsageError("; ".join(failed))


def writes(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command an option for every report format; what was asked for comes to it as `outputs`."""
    known = formats()
    hints = {n: h for n, h in get_type_hints(command, include_extras=True).items() if n != "outputs"}
    added: dict[str, Any] = {
        f.name: Annotated[Path | None, typer.Option(f"--{f.name}", metavar="F", help=f.help)] for f in known.values()
    }
    added["github"] = _GITHUB

    @functools.wraps(command)
    def run(*given: Any, **named: Any) -> int:
        files = {name: path for name in known if (path := named.pop(name, None)) is not None}
        return command(*given, outputs=Outputs(files, named.pop("github", False)), **named)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "outputs"]
    options = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False if n == "github" else None, annotation=hint)
        for n, hint in added.items()
    ]
    parameters = [*(p.replace(annotation=hints[p.name]) for p in own), *options]
    run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    result = hints.pop("return", int)
    run.__annotations__ = {**hints, **added, "return": result}
    return run


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
