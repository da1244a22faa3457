"""What a comparison of two targets found: records that a report renders, and the words they come down to.

Errors are root mean squares of (result - reference) over all elements of one result in one case. Two kernels are compared case
by case, so that a hard case weighs as much as an easy one; a ratio below 1 says that the first target is nearer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# A kernel counts as more accurate where chance would let it be nearer this often in one of twenty comparisons.
CHANCE = 0.05


@dataclass(frozen=True, slots=True)
class Measurement:
    """One result of one case, asked of both.

    Attributes:
        case_id: of the case.
        facets: named regions that the case lies in: ("regime", "unit"), ("T", "17-64") ...
        result: o, state, dq ...
        dtype: short name of the case's format.
        errors: root mean square error of either target; infinite where it is not finite.
        shares: of the budget, largest over the statistics, of either target.
    """

    case_id: str
    facets: tuple[tuple[str, str], ...]
    result: str
    dtype: str
    errors: tuple[float, float]
    shares: tuple[float, float]

    @property
    def ratio(self) -> float:
        """The first error over the second; 1 where both are equal, zero and infinity included."""
        first, second = self.errors
        return 1.0 if first == second else math.inf if second == 0 else first / second


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two targets.

    Attributes:
        target: as the user wrote it.
        verdict: pass, violation or unchecked, by the cases of this comparison.
        reason: of unchecked.
        worst: largest share of the budget; None where nothing was judged.
        broken: cases beyond the budget, crashes and hangs included.
        refused: cases that this target refused.
        case_id, diagnosis: of its worst broken case.
    """

    target: str
    verdict: str
    reason: str = ""
    worst: float | None = None
    broken: int = 0
    refused: int = 0
    case_id: str = ""
    diagnosis: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Measurements taken together: of one result in one dtype, or of one region.

    Attributes:
        names: ("o", "bf16"), or ("regime", "unit").
        cases: that both answered.
        ratio: median over the cases of the first error over the second.
        nearer: cases in which either target has the smaller error; equal ones count for neither.
        worst: largest share of the budget of either.
        case_id: of the case where the errors differ most.
    """

    names: tuple[str, str]
    cases: int
    ratio: float
    nearer: tuple[int, int]
    worst: tuple[float, float]
    case_id: str

    @property
    def chance(self) -> float:
        """How often two equally accurate kernels would be this far apart in who is nearer: a two-sided sign test."""
        low, high = sorted(self.nearer)
        return min(1.0, 2 * sum(math.comb(low + high, i) for i in range(low + 1)) / math.ldexp(1.0, low + high))

    @property
    def leader(self) -> int:
        """Which target is nearer more often: 0 or 1."""
        return 0 if self.nearer[0] >= self.nearer[1] else 1


def decided(found: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows in which one target is more accurate; the more rows are looked at, the more each must show."""
    return tuple(r for r in found if r.chance * len(found) <= CHANCE)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two targets asked the same cases.

    Attributes:
        operator: its name.
        sides: the two targets.
        cases: that both were asked.
        overall: all results together; None where no case was answered by both.
        rows: by result and dtype.
        regions: by regime, gate, state and size, the most different first.
        notes: what a reader should know.
    """

    operator: str
    sides: tuple[Side, Side]
    cases: int
    overall: Row | None
    rows: tuple[Row, ...]
    regions: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 where a target broke a law, else 3 where one could not be checked, else 0."""
        verdicts = {s.verdict for s in self.sides}
        return 1 if "violation" in verdicts else 3 if "unchecked" in verdicts else 0

    @property
    def sentence(self) -> str:
        """Which is more accurate, and whether the difference is rounding or a bug."""
        broken = [name for name, s in zip("AB", self.sides, strict=True) if s.verdict == "violation"]
        missing = [(n, s) for n, s in zip("AB", self.sides, strict=True) if s.verdict == "unchecked"]
        if missing:
            return "; ".join(f"{n} could not be checked: {s.reason}" for n, s in missing)
        if len(broken) == 2:
            return "Both leave the budget: both have a bug, and which is nearer says little until they are gone."
        if broken:
            (name,), other = broken, "B" if broken == ["A"] else "A"
            return f"{name} leaves the budget, {other} does not: the difference is a bug in {name}, not rounding."
        return f"Both stay within the budget: what separates them is rounding. {self._nearer()}"

    def _nearer(self) -> str:
        if self.overall is None or all(r.nearer == (0, 0) for r in self.rows):
            return "Their errors are the same in every case."
        parts = []
        for side, name in enumerate("AB"):
            count = f"nearer in {self.overall.nearer[side]} of {self.overall.cases} cases"
            if self.overall.chance <= CHANCE and self.overall.leader == side:
                parts.append(f"{name} is more accurate on the whole ({count})")
            won = ", ".join(f"{r.names[0]} in {r.names[1]}" for r in decided(self.rows) if r.leader == side)
            parts += [f"{name} is more accurate in {won}"] if won else []
        return ("; ".join(parts) or "Neither is more accurate: chance explains who is nearer in which case") + "."


def overall(measured: Sequence[Measurement]) -> Row | None:
    """Take all measurements together; a case counts once, by the median of its results."""
    return _row(("all", ""), measured) if measured else None


def rows(measured: Sequence[Measurement]) -> tuple[Row, ...]:
    """Take measurements together by result and dtype, in the order in which they come."""
    keys = dict.fromkeys((m.result, m.dtype) for m in measured)
    return tuple(_row(key, [m for m in measured if (m.result, m.dtype) == key]) for key in keys)


def regions(measured: Sequence[Measurement]) -> tuple[Row, ...]:
    """Take measurements together by region, the most different first; a region that every case lies in says nothing.

    A case counts once, by the median of its results.
    """
    cases = {m.case_id: m.facets for m in measured}
    keys = dict.fromkeys(facet for facets in cases.values() for facet in facets)
    inside = {key: [m for m in measured if key in m.facets] for key in keys}
    found = [_row(key, ms) for key, ms in inside.items() if 1 < len({m.case_id for m in ms}) < len(cases)]
    return tuple(sorted(found, key=lambda r: -distance(r.ratio)))


def distance(ratio: float) -> float:
    """How far a ratio is from 1, either way."""
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _row(names: tuple[str, str], measured: Sequence[Measurement]) -> Row:
    by_case: dict[str, list[float]] = {}
    for m in measured:
        by_case.setdefault(m.case_id, []).append(m.ratio)
    ratios = {case_id: _median(found) for case_id, found in by_case.items()}
    farthest = max(measured, key=lambda m: distance(m.ratio))
    return Row(
        names,
        len(ratios),
        _median(list(ratios.values())),
        (sum(r < 1 for r in ratios.values()), sum(r > 1 for r in ratios.values())),
        (max(m.shares[0] for m in measured), max(m.shares[1] for m in measured)),
        farthest.case_id,
    )


def _median(ratios: Sequence[float]) -> float:
    """The middle ratio; of two middle ones the geometric mean, or the one nearer to 1 where that is no number."""
    ordered = sorted(ratios)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if low > 0 and high < math.inf:
        return math.sqrt(low * high)
    return min(low, high, key=distance)
