"""GitHub Actions: annotations at the kernel's line, and a job summary in Markdown.

GitHub shows at most ten errors and ten warnings a step; what would be cut is counted in the last one.
Source: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from collections.abc import Iterator, Sequence

from linverify.reports.changes import KINDS, REGRESSIONS, Changes
from linverify.reports.changes_table import summary as change_summary
from linverify.reports.console import failure_as_text, replay_command
from linverify.reports.headline import why
from linverify.reports.place import from_root, place
from linverify.reports.sentence import sentence
from linverify.reports.synthesis_panel import TITLE, rows
from linverify.reports.telling import telling
from linverify.reports.text import counted, duration, share, words
from linverify.verdict import PropertyResult, Report, Status, TargetResult

_PER_STEP = 10
_MARKS = {"pass": "✅", "violation": "❌", "unchecked": "⚠️"}
_SUMMARY_BYTES = 1_000_000  # a step's summary may hold 1 MiB


def annotations(report: Report) -> str:
    """Return workflow commands, one a line: errors for violations and what could not be checked, warnings for marginal."""
    errors = [line for r in report.results for line in _errors(report, r)]
    warnings = [
        _command("warning", r, f"marginal: {words(p.name)}", _message(report, r, p))
        for r in report.results
        for p in r.properties
        if p.status is Status.MARGINAL
    ]
    lines = [*_at_most(errors, "error"), *_at_most(warnings, "warning")]
    return "".join(f"{line}\n" for line in lines)


def job_summary(report: Report, changes: Changes | None = None) -> str:
    """Return Markdown: the verdict of every target, what changed, then each target's table and failures."""
    parts = ["## linverify", "", *_verdicts(report), ""]
    if changes is not None:
        parts += [*_changes(changes), ""]
    room = _SUMMARY_BYTES - len("\n".join(parts).encode())
    for number, result in enumerate(report.results):
        lines = [*_target(report, result), ""]
        room -= len("\n".join(lines).encode())
        if room < 0:
            rest = len(report.results) - number
            parts.append(f"{counted(rest, 'target')} left out here; GitHub takes no longer summary, the log has all")
            break
        parts += lines
    return "\n".join(parts)


def _errors(report: Report, result: TargetResult) -> Iterator[str]:
    for found in result.properties:
        if found.required and found.status is Status.VIOLATION:
            yield _command("error", result, f"{words(found.name)} is broken", _message(report, result, found))
    if result.verdict == "unchecked":
        yield _command("error", result, "could not be checked", f"{result.target}: {why(result)}")


def _message(report: Report, result: TargetResult, found: PropertyResult) -> str:
    lines = [f"{result.target} ({result.operator}): {sentence(found)}"]
    if found.failure:
        lines.append(f"case {found.failure.case_id}")
        lines.append(replay_command(result, found, report.replay_options))
    return "\n".join(lines)


def _at_most(lines: Sequence[str], level: str) -> list[str]:
    if len(lines) <= _PER_STEP:
        return list(lines)
    rest = len(lines) - _PER_STEP + 1
    return [
        *lines[: _PER_STEP - 1],
        f"::{level} title=linverify::and {rest} more; the log and the job summary have all",
    ]


def _command(level: str, result: TargetResult, title: str, message: str) -> str:
    file, line = place(result)
    inside = from_root(file) if file else None
    at = f"file={_property(inside)},line={line}," if inside else ""
    return f"::{level} {at}title={_property(f'linverify: {title}')}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _verdicts(report: Report) -> Iterator[str]:
    yield "| | target | operator | |"
    yield "|---|---|---|---|"
    for r in report.results:
        verdict = f"{_MARKS[r.verdict]} {r.verdict}"
        yield f"| {verdict} | {_code(r.target)} | {_cell(r.operator)} | {_cell(why(r))} |"


def _changes(changes: Changes) -> Iterator[str]:
    yield f"### Since the run before: {change_summary(changes)}"
    if changes.found:
        yield ""
        yield "| | property | before | after | target |"
        yield "|---|---|---|---|---|"
    for c in changes.found:
        mark = "❌" if c.kind in REGRESSIONS else "✅" if c.kind in ("fixed", "gained") else "·"
        status = f"{words(c.before)} | {words(c.after)}"
        yield f"| {mark} {KINDS[c.kind]} | {_cell(words(c.name))} | {status} | {_code(c.result.target)} |"


def _target(report: Report, result: TargetResult) -> Iterator[str]:
    """Yield a target's failures and, folded, its table of properties; a pass is folded whole."""
    yield f"### {_MARKS[result.verdict]} {_code(result.target)}"
    if result.synthesis is not None and (said := rows(result.synthesis)):
        yield from ("", f"**{TITLE}**", "")
        yield from (f"* {label}: {_cell(value)}" for label, value in said)
    for found in telling(result.properties)[0]:
        yield ""
        yield f"**{words(found.name)}: {words(found.status)}.** {_cell(sentence(found))}"
        yield ""
        yield from _fenced(failure_as_text(result, found, replay_options=report.replay_options, width=110))
    yield ""
    judged = sum(bool(p.cases) for p in result.properties)
    yield f"<details><summary>{judged} properties judged on {result.cases} cases</summary>"
    yield ""
    yield "| property | status | cases | share of the budget | time |"
    yield "|---|---|--:|--:|--:|"
    for p in sorted(result.properties, key=lambda p: not p.required):
        name = _cell(words(p.name)) if p.required else f"({_cell(words(p.name))})"
        note = f": {_cell(p.note)}" if p.note else ""
        used = share(p.worst_budget_fraction)
        yield f"| {name} | {words(p.status)}{note} | {p.cases} | {_cell(used)} | {duration(p.seconds)} |"
    yield ""
    yield "</details>"


def _fenced(text: str) -> Iterator[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    yield f"{fence}text"
    yield text
    yield fence


def _cell(text: str) -> str:
    """Return text that no table cell and no HTML reader takes for markup."""
    for character in "\\`*_[]~|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def _code(text: str) -> str:
    return _cell(text) if "|" in text or "`" in text else f"`{text}`"
