"""Stability on the console: one line a diagnostic with its verdict, what shows it, and small plots."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from linverify.reports.growth_lines import Sparkline
from linverify.reports.limits import notes
from linverify.reports.text import STYLES, counted, number, words
from linverify.stability.records import Curve, Finding, Stability, StabilityReport

COLOURS = {
    "bounded": "green",
    "bounded by eps": "yellow",
    "unbounded": "red",
    "measured": "",
    "unchecked": "magenta",
}
_CELLS = 40
_INDENT = (0, 0, 0, 3)


def print_stability(console: Console, report: StabilityReport) -> None:
    """Print every target's diagnostics. Names of targets stay on one line, however long."""
    for position, result in enumerate(report.results):
        if position:
            console.print()
        console.print(headline(result), soft_wrap=True)
        console.print(Text(f"   {summary(result)}"))
        console.print()
        console.print(table(result.findings))
        if result.notes:
            console.print()
            console.print(notes(result.notes))


def headline(result: Stability) -> Text:
    """Return the verdict, the target and its operator."""
    parts = [(result.verdict.upper(), STYLES[result.verdict]), "  ", (result.target, "bold")]
    return Text.assemble(*parts, f"  {result.operator}" if result.operator else "")


def summary(result: Stability) -> str:
    """Return the sentence under the headline: what is promised, and what is beyond it."""
    broken = [f for f in result.findings if not f.holds]
    promise = f"its mechanism says {result.promise}: |dp/ds| up to {result.mechanism}" if result.mechanism else ""
    if broken:
        told = f"{counted(len(broken), 'diagnostic')} beyond it" if promise else counted(len(broken), "fault")
        names = ", ".join(dict.fromkeys(f"{f.diagnostic} {words(f.name)}" for f in broken))
        return "; ".join(p for p in (promise, f"{told}: {names}") if p)
    return promise or "nothing is promised: what follows was measured"


def table(findings: Sequence[Finding]) -> RenderableType:
    """Return every diagnostic: verdict and figure, what was found, the input that shows it, small plots."""
    return Group(*(line for f in findings for line in _entry(f)))


def _entry(found: Finding) -> list[RenderableType]:
    name = f"{found.diagnostic} {words(found.name)}"
    figure = "" if found.number is None else f"  {number(found.number)}"
    head = Text.assemble(f"{name:<15}", (f"{found.verdict:<15}", COLOURS[found.verdict]), f"{found.dtype:<5}", figure)
    lines: list[RenderableType] = [Text(head.plain.rstrip(), spans=head.spans)]
    lines.append(Padding(Text(found.sentence, style="" if found.holds else "bold red"), _INDENT))
    if found.shown_by:
        lines.append(Padding(Text(found.shown_by, style="dim"), _INDENT))
    for curve in found.curves:
        lines.append(Padding(Sparkline(thinned(curve.y)), _INDENT))
        lines.append(Padding(Text(caption(curve), style="dim"), _INDENT))
    return lines


def thinned(values: Sequence[float]) -> tuple[float, ...]:
    """Return at most 40 of the values, evenly spaced, both ends among them."""
    if len(values) <= _CELLS:
        return tuple(values)
    return tuple(values[round(i * (len(values) - 1) / (_CELLS - 1))] for i in range(_CELLS))


def caption(curve: Curve) -> str:
    """Return what a curve shows, with its ends."""
    label = f"{curve.label}: " if curve.label else ""
    ends = f"{curve.y_name} {number(curve.y[0])} to {number(curve.y[-1])}"
    return f"{label}{ends}, {curve.x_name} {number(curve.x[0])} to {number(curve.x[-1])}"
