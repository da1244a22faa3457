"""What a file of this folder assigns to be a report format: ``FORMAT = Format(...)``; the commands find it by scanning."""

from collections.abc import Callable
from dataclasses import dataclass

from linverify.reports.changes import Changes
from linverify.verdict import Report


@dataclass(frozen=True, slots=True)
class Format:
    """A form in which a run is written to a file.

    Attributes:
        name: of the option: "html" makes ``--html F``.
        help: what the option says of itself.
        text: makes the file of a run, and of what changed since an earlier one where there is one.
    """

    name: str
    help: str
    text: Callable[[Report, Changes | None], str]
