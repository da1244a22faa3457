"""What changed from one run to a later one: regressions first.

Targets are paired by text and operator; what is left over is paired by operator alone where that leaves no choice, so that two
files with the old and the new version of a kernel can be compared as well.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from linverify.verdict import PropertyResult, Report, Status, TargetResult

Kind = Literal["broken", "lost", "marginal", "appeared", "changed", "fixed", "gained"]

# In the order in which a reader wants them, and what each means.
KINDS: dict[Kind, str] = {
    "broken": "not broken before, broken now",
    "lost": "required and judged before, not judged now",
    "marginal": "clear of the line before, on it now",
    "appeared": "reported now, not required",
    "changed": "another status",
    "fixed": "broken before, holds now",
    "gained": "not judged before, judged now",
}
REGRESSIONS: tuple[Kind, ...] = ("broken", "lost")
_ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Change:
    """One property of one target, before and after.

    Attributes:
        kind: see KINDS.
        result: the target afterwards; beforehand where it is gone.
        name: of the property.
        before, after: statuses; "absent" where a run did not ask.
        found: the property's result afterwards; None where it is gone.
    """

    kind: Kind
    result: TargetResult
    name: str
    before: str
    after: str
    found: PropertyResult | None


@dataclass(frozen=True, slots=True)
class Drift:
    """The worst share of the budget of one result and dtype, before and after."""

    result: TargetResult
    name: str
    dtype: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Changes:
    """All that changed.

    Attributes:
        before, after: the runs.
        found: changes of status, regressions first.
        drifts: changes of the worst share, the largest growth first.
    """

    before: Report
    after: Report
    found: tuple[Change, ...]
    drifts: tuple[Drift, ...]

    @property
    def exit_code(self) -> int:
        """That of the later run; 3 also where the later run holds but no longer judges what the earlier one did."""
        lost = any(c.kind == "lost" for c in self.found)
        return self.after.exit_code or (3 if lost else 0)

    @property
    def circumstances(self) -> tuple[tuple[str, str, str], ...]:
        """What was different about the runs themselves: name, before, after."""
        a, b = (
            {"seed": str(r.seed), "profile": r.profile, "linverify": r.linverify_version, **r.environment}
            for r in (self.before, self.after)
        )
        names = dict.fromkeys([*a, *b])
        return tuple((n, a.get(n, "-"), b.get(n, "-")) for n in names if a.get(n, "-") != b.get(n, "-"))

    def is_new(self, result: TargetResult, found: PropertyResult) -> bool:
        """Return whether a failure of the later run was none in the earlier one."""
        before = dict(_pairs(self.before, self.after)).get(_key(result))
        return before is None or all(p.failure is None for p in before.properties if p.name == found.name)


def compare(before: Report, after: Report) -> Changes:
    """Compare two runs."""
    partners = dict(_pairs(before, after))
    found: list[Change] = []
    drifts: list[Drift] = []
    for result in after.results:
        earlier = partners.get(_key(result))
        found += _of_target(earlier, result)
        drifts += _drifts(earlier, result) if earlier else ()
    kept = {_key(r) for r in partners.values()}
    for gone in before.results:
        if _key(gone) not in kept:
            found += [Change(_gone(p), gone, p.name, p.status, _ABSENT, None) for p in gone.properties if p.cases]
    order = list(KINDS)
    found.sort(key=lambda c: order.index(c.kind))
    drifts.sort(key=lambda d: d.after / d.before if d.before else float("inf"), reverse=True)
    return Changes(before, after, tuple(found), tuple(drifts))


def _key(result: TargetResult) -> tuple[str, str]:
    return result.target, result.operator


def _pairs(before: Report, after: Report) -> Iterator[tuple[tuple[str, str], TargetResult]]:
    """Yield a later target's key with its earlier result."""
    old = {_key(r): r for r in before.results}
    new = {_key(r): r for r in after.results}
    for key in new.keys() & old.keys():
        yield key, old[key]
    old_rest = [r for k, r in old.items() if k not in new]
    new_rest = [r for k, r in new.items() if k not in old]
    for result in new_rest:
        partners = [r for r in old_rest if r.operator == result.operator]
        rivals = [r for r in new_rest if r.operator == result.operator]
        if len(partners) == len(rivals) == 1:
            yield _key(result), partners[0]


def _of_target(before: TargetResult | None, after: TargetResult) -> Iterator[Change]:
    old: Mapping[str, PropertyResult] = {p.name: p for p in before.properties} if before else {}
    for found in after.properties:
        earlier = old.get(found.name)
        kind = _kind(earlier, found)
        if kind is not None:
            yield Change(kind, after, found.name, earlier.status if earlier else _ABSENT, found.status, found)
    new = {p.name for p in after.properties}
    for earlier in old.values():
        if earlier.name not in new and earlier.cases:
            yield Change(_gone(earlier), after, earlier.name, earlier.status, _ABSENT, None)


def _kind(before: PropertyResult | None, after: PropertyResult) -> Kind | None:
    was, now = (before.status if before else None), after.status
    if now is Status.VIOLATION and after.required:
        return None if was is Status.VIOLATION and before and before.required else "broken"
    if before is not None and before.cases and not after.cases:
        return _gone(before)
    if now is was:
        return None
    if was is Status.VIOLATION and after.cases:
        return "fixed"
    if now is Status.MARGINAL:
        return "marginal"
    if now is Status.REPORTED:
        return "appeared"
    if after.cases and not (before and before.cases):
        return "gained"
    return "changed" if before is not None else None


def _gone(before: PropertyResult) -> Kind:
    return "lost" if before.required else "changed"


def _drifts(before: TargetResult, after: TargetResult) -> Iterator[Drift]:
    old = {(u.result, u.dtype): u.worst for u in before.budget}
    for use in after.budget:
        worst = old.get((use.result, use.dtype))
        if worst is not None and worst != use.worst:
            yield Drift(after, use.result, use.dtype, worst, use.worst)
