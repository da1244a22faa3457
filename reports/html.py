"""The report as one page: nothing is loaded from anywhere, so that it can be mailed, archived and read off line.

The verdict comes first, then what is wrong, then the evidence; every number of the page is in the record as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from linverify.reports._format import Format
from linverify.reports._page import templates
from linverify.reports.changes import KINDS, REGRESSIONS, Changes
from linverify.reports.changes_table import ratio, regressions, summary
from linverify.reports.console import replay_command, timing_line
from linverify.reports.failure_panel import rows
from linverify.reports.headline import why
from linverify.reports.insight_parts import shows
from linverify.reports.place import place
from linverify.reports.plot_attribution import plot_attribution
from linverify.reports.plot_cloud import plot_cloud
from linverify.reports.plot_growth import plot_growth
from linverify.reports.plot_heat import plot_heat
from linverify.reports.plot_recipes import plot_recipes
from linverify.reports.plot_shares import plot_shares
from linverify.reports.sentence import sentence
from linverify.reports.svg import Figure
from linverify.reports.synthesis_panel import TITLE
from linverify.reports.synthesis_panel import rows as synthesis_rows
from linverify.reports.telling import telling
from linverify.reports.text import counted, duration, share, words
from linverify.verdict import BudgetUse, PropertyResult, Report, Status, TargetResult

SCRIPT_BYTES = 1_500_000  # of reproducers in all, so that the page stays below 3 MB
_ASIDE = (Status.NOT_OFFERED, Status.NOT_APPLICABLE)
_GRAVITY = (
    Status.VIOLATION,
    Status.MARGINAL,
    Status.UNCHECKED,
    Status.REFUSED,
    Status.REPORTED,
    Status.PASS,
    Status.NOT_OFFERED,
    Status.NOT_APPLICABLE,
)
_SAID_ELSEWHERE = ("diagnosis", "reproducer", "stderr")


@dataclass(frozen=True, slots=True)
class Card:
    """One failure as the page shows it.

    Attributes:
        found: the property.
        anchor: its place on the page.
        headline: what is wrong, in one sentence.
        facts: labels and values, as in every report.
        log: what the worker printed.
        replay: the command.
        script: the reproducer's text; "" where it was not found or is too large.
        missing: why there is no text.
        figures: plots of the failing result.
    """

    found: PropertyResult
    anchor: str
    headline: str
    facts: tuple[tuple[str, str], ...]
    log: str
    replay: str
    script: str
    missing: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One target as the page shows it.

    Attributes:
        short: labels and values of what the broken laws say together.
        open: so many of the cards are unfolded.
        more: plots beyond the first few.
    """

    result: TargetResult
    anchor: str
    place: str
    why: str
    short: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    open: int
    aside: tuple[Card, ...]
    asked: tuple[PropertyResult, ...]
    unasked: tuple[PropertyResult, ...]
    figures: tuple[Figure, ...]
    more: tuple[Figure, ...]
    budget: tuple[tuple[str, tuple[float | None, ...]], ...]
    budget_columns: tuple[str, ...]
    timing: str


def html(report: Report, changes: Changes | None = None) -> str:
    """Return the page; with `changes`, it says first what got worse."""
    page = _environment().get_template("report.html")
    scripts = _Scripts(SCRIPT_BYTES)
    return page.render(
        report=report,
        sections=[_section(report, result, number, scripts) for number, result in enumerate(report.results)],
        verdict=_verdict(report),
        changes=changes,
        change_summary=summary(changes) if changes else "",
        worse=regressions(changes) if changes else 0,
        kinds=KINDS,
        regressions=REGRESSIONS,
        statuses=_GRAVITY,
        short_title=TITLE,
    )


def _environment() -> Environment:
    environment = templates({"share": share, "duration": duration, "sentence": sentence, "counted": counted})
    environment.globals["ratio"] = ratio
    return environment


def _verdict(report: Report) -> str:
    return {0: "pass", 1: "violation"}.get(report.exit_code, "unchecked")


class _Scripts:
    """Reads reproducers until so many bytes of them stand on the page."""

    def __init__(self, room: int) -> None:
        self._room = room

    def read(self, path: str) -> tuple[str, str]:
        """Return the text, or "" and why there is none."""
        if not path:
            return "", ""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return "", "it is not where this page was made"
        size = len(text.encode())
        if size > self._room:
            return "", f"too large for this page ({size // 1000} kB)"
        self._room -= size
        return text, ""


def _section(report: Report, result: TargetResult, number: int, scripts: _Scripts) -> Section:
    anchor = f"target-{number}"
    full, rest = telling(result.properties)
    cards = [_card(report, result, p, f"{anchor}-{p.name}", scripts) for p in (*full, *rest)]
    used = {f.about for c in cards for f in c.figures}
    first, more = _figures(result)
    file, line = place(result)
    columns, budget = _budget(result.budget)
    return Section(
        result=result,
        anchor=anchor,
        place=f"{file}:{line}" if result.file else file,
        why=why(result),
        short=tuple(synthesis_rows(result.synthesis)) if result.synthesis else (),
        cards=tuple(c for c in cards if c.found.status is not Status.REPORTED),
        open=len(full),
        aside=tuple(c for c in cards if c.found.status is Status.REPORTED),
        asked=tuple(sorted((p for p in result.properties if p.status not in _ASIDE), key=_rank)),
        unasked=tuple(p for p in result.properties if p.status in _ASIDE),
        figures=tuple(f for f in first if f.about not in used),
        more=tuple(f for f in more if f.about not in used),
        budget=budget,
        budget_columns=columns,
        timing=timing_line(result.seconds) if result.seconds else "",
    )


def _rank(found: PropertyResult) -> tuple[bool, int]:
    return not found.required, _GRAVITY.index(found.status)


def _card(report: Report, result: TargetResult, found: PropertyResult, anchor: str, scripts: _Scripts) -> Card:
    failure = found.failure
    assert failure is not None
    facts = rows(failure)
    script, missing = scripts.read(failure.reproducer)
    maps = [m for m in result.insight.maps if shows(m, found)]
    drawn = [plot_heat(m) for m in maps[:1]]
    return Card(
        found=found,
        anchor=anchor,
        headline=failure.diagnosis or failure.evidence.message or words(failure.evidence.kind),
        facts=tuple(fact for fact in facts if fact[0] not in _SAID_ELSEWHERE),
        log=dict(facts).get("stderr", ""),
        replay=replay_command(result, found, report.replay_options),
        script=script,
        missing=missing,
        figures=tuple(f for f in drawn if f),
    )


def _figures(result: TargetResult) -> tuple[list[Figure], list[Figure]]:
    """Return the first plot that answers each question, and all others."""
    insight = result.insight
    kinds: list[list[Figure | None]] = [
        [plot_shares(result.properties)],
        [plot_attribution(a) for a in sorted(insight.attribution, key=lambda a: -a.unexplained)],
        [plot_cloud(c) for c in insight.clouds],
        [plot_heat(m) for m in insight.maps],
        [plot_growth(g) for g in insight.growth],
        [plot_recipes(insight.recipes)],
    ]
    drawn = [[f for f in kind if f is not None] for kind in kinds]
    return [kind[0] for kind in drawn if kind], [f for kind in drawn for f in kind[1:]]


def _budget(
    uses: Sequence[BudgetUse],
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[float | None, ...]], ...]]:
    """Return the columns (dtypes) and the rows (results) of the worst shares."""

    def heading(use: BudgetUse) -> str:
        return use.dtype if use.precision_class in ("", use.dtype) else f"{use.dtype} as {use.precision_class}"

    columns = tuple(dict.fromkeys(heading(u) for u in uses))
    cells = {(u.result, heading(u)): u.worst for u in sorted(uses, key=lambda u: u.worst)}
    results = dict.fromkeys(u.result for u in uses)
    return columns, tuple((r, tuple(cells.get((r, c)) for c in columns)) for r in results)


FORMAT = Format("html", "Write a page to read in a browser.", html)
