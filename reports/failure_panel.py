"""One broken law: the minimal case, the four facts, where the error sits, why, and how to see it again."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from linverify.reports.rule import Line
from linverify.reports.text import STYLES, counted, number, share, words
from linverify.verdict import Evidence, Failure, Location, PropertyResult

_LOG_LINES = 8
_NOT_TELLING = (
    "Extension modules:",
    'File "<frozen ',
    "/linverify/worker.py",
    "/linverify/invoke.py",
    "/linverify/forkserver.py",
)


def failure_panel(target: str, operator: str, result: PropertyResult, failure: Failure) -> RenderableType:
    """Return the panel; its last line, the command, is the console's to print, because it must never be wrapped."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold", min_width=11)
    grid.add_column(overflow="fold")
    for label, value in rows(failure):
        grid.add_row(label, Text(value))
    title = Text.assemble(
        (words(result.status).upper(), STYLES[result.status]), f"  {words(result.name)}  {target}  {operator}"
    )
    return Group(Line(), title, grid)


def rows(failure: Failure) -> list[tuple[str, str]]:
    """Return labels and values in the order in which every report gives them."""
    found = [("case", failure.case_id)]
    if failure.original_case_id and failure.original_case_id != failure.case_id:
        found.append(("shrunk from", failure.original_case_id))
    what, *facts = _facts(failure.evidence)
    found += [what, *_results(failure), *facts]
    found += _location(failure.location)
    if failure.needs:
        without = "it" if len(failure.needs) == 1 else "any of these"
        found.append(("needs", f"{'; '.join(failure.needs)}; without {without} the same case is right"))
    if failure.spare:
        found.append(("not needed", "; ".join(failure.spare)))
    if failure.diagnosis and failure.diagnosis != failure.evidence.message:
        found.append(("diagnosis", failure.diagnosis))
    log = _telling(failure.log)
    if log:
        found.append(("stderr", log))
    if failure.reproducer:
        found.append(("reproducer", failure.reproducer))
    return found


def _results(failure: Failure) -> list[tuple[str, str]]:
    """Which results are wrong and which are right says in which part of the kernel to look."""
    if len(failure.wrong) + len(failure.right) < 2:
        return []
    parts = [
        f"{word}: {', '.join(names)}" for word, names in (("wrong", failure.wrong), ("right", failure.right)) if names
    ]
    return [("results", "; ".join(parts))]


def _telling(log: str) -> str:
    """Return the last lines of a log without what every crash of a worker prints."""
    told = [line for line in log.splitlines() if line.strip() and not any(mark in line for mark in _NOT_TELLING)]
    return "\n".join(told[-_LOG_LINES:])


def _facts(e: Evidence) -> list[tuple[str, str]]:
    what = words(e.kind) + (f" in {e.result}" if e.result else "")
    if not e.of:
        return [("what", f"{what}: {e.message}" if e.message else what)]
    found = [("what", what)]
    found.append(("how many", f"{e.how_many} of {counted(e.of, 'element')}"))
    values = "" if e.got is None and e.expected is None else " (expected {}, got {})".format(*_pair(e.expected, e.got))
    found.append(("how far", number(e.how_far) + values))
    if e.where:
        found.append(("where", e.where))
    if e.kind == "not_bitwise":
        found.append(("allowed", "nothing: equal bit by bit"))
    elif e.allowed or e.share != float("inf"):
        by = f", by the {e.statistic}" if e.statistic else ""
        found.append(("allowed", f"{number(e.allowed)}; share of the budget {share(e.share)}{by}"))
    return found


def _pair(expected: float | None, got: float | None) -> tuple[str, str]:
    """Return both values with six digits, or with as many as it takes to tell them apart."""
    for digits in (6, 9, 17):
        a, b = ("none" if x is None else f"{x:.{digits}g}" for x in (expected, got))
        if a != b or expected == got:
            break
    return a, b


def _location(where: Location) -> list[tuple[str, str]]:
    parts = []
    if where.first_bad_t is not None:
        parts.append(f"first at t = {where.first_bad_t}")
    parts += [text for text in (where.times, where.heads, where.features) if text]
    if where.suspected_chunk is not None:
        parts.append(f"suspected chunk size {where.suspected_chunk}")
    return [("location", "; ".join(parts))] if parts else []
