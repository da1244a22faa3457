"""Stability as one page that loads nothing from anywhere: verdicts first, then every diagnostic with its plots and figures."""

from dataclasses import dataclass

from linverify.reports._page import templates
from linverify.reports.plot_stability import plot_stability
from linverify.reports.stability import summary
from linverify.reports.svg import Figure
from linverify.reports.text import number
from linverify.stability.records import Finding, Stability, StabilityReport

_BADGES = {"bounded": "pass", "bounded by eps": "marginal", "unbounded": "violation", "unchecked": "unchecked"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One diagnostic as the page shows it."""

    found: Finding
    badge: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One target as the page shows it."""

    result: Stability
    summary: str
    entries: tuple[Entry, ...]


def html(report: StabilityReport) -> str:
    """Return the page."""
    page = templates({"number": number}).get_template("stability.html")
    verdict = {0: "pass", 1: "violation"}.get(report.exit_code, "unchecked")
    sections = [
        Section(result, summary(result), tuple(_entry(f) for f in result.findings)) for result in report.results
    ]
    return page.render(report=report, verdict=verdict, sections=sections)


def _entry(found: Finding) -> Entry:
    badge = _BADGES.get(found.verdict, "reported") if found.holds else "violation"
    return Entry(found, badge, tuple(plot_stability(found)))
