"""What the diagnostics find, as reports render it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

VERDICTS = ("bounded", "bounded by eps", "unbounded", "measured", "unchecked")


@dataclass(frozen=True, slots=True)
class Curve:
    """Points to plot.

    Attributes:
        x, y: positive numbers, drawn on logarithmic axes unless `linear`.
        x_name, y_name: what they are.
        expected: what the mechanism says at the same x; () where it says nothing.
        mark: an abscissa to mark (a crossover), or None.
        label: which of several curves this is.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    x_name: str
    y_name: str
    expected: tuple[float, ...] = ()
    mark: float | None = None
    label: str = ""
    linear: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnostic on one target.

    Attributes:
        diagnostic: D1 to D7.
        name: gain, supremum, spectrum, growth, layers, dilution, finite.
        dtype: in which the target computed; "" where several are in the figures.
        verdict: bounded, bounded by eps, unbounded; measured where no bound is in question; unchecked.
        holds: False where something exceeds what the mechanism promises.
        number: the figure that decides.
        bound: what the mechanism promises for it, or None.
        shown_by: the input that shows it, in words.
        sentence: what was found.
        figures: further numbers by name.
        curves: to plot.
    """

    diagnostic: str
    name: str
    dtype: str
    verdict: str
    holds: bool
    number: float | None
    bound: float | None
    shown_by: str
    sentence: str
    figures: Mapping[str, float] = field(default_factory=dict)
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"expected a verdict among {', '.join(VERDICTS)}, got {self.verdict!r}")


@dataclass(frozen=True, slots=True)
class Stability:
    """All diagnostics of one target.

    Attributes:
        target: as the user wrote it.
        operator: its name; "" of a module.
        mechanism: the bound in words; "" where none is known.
        promise: bounded, bounded by eps, unbounded; "" where nothing is promised.
        findings: in order.
        notes: what a reader should know besides.
    """

    target: str
    operator: str
    mechanism: str
    promise: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Violation, unchecked (nothing could be measured) or pass."""
        if any(not f.holds for f in self.findings):
            return "violation"
        checked = any(f.verdict != "unchecked" for f in self.findings)
        return "pass" if checked else "unchecked"


@dataclass(frozen=True, slots=True)
class StabilityReport:
    """A whole run, as ``--json`` writes it."""

    linverify_version: str
    environment: Mapping[str, str]
    seed: int
    results: tuple[Stability, ...]
    schema_version: int = 1

    @property
    def exit_code(self) -> int:
        """1 for a gradient beyond its mechanism's own bound, else 3 where a target could not be measured, else 0."""
        verdicts = {r.verdict for r in self.results}
        return 1 if "violation" in verdicts else 3 if "unchecked" in verdicts or not verdicts else 0


def unchecked(diagnostic: str, name: str, dtype: str, reason: str) -> Finding:
    """A diagnostic that could not be made, and why."""
    return Finding(diagnostic, name, dtype, "unchecked", True, None, None, "", reason)
