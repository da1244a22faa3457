"""Crossing: the laws that hold on their own cases are asked about the case that fails.

WHY. That a law holds says little of a fault that its cases did not meet: a kernel that reads the next head's rows in a partial
block obeys independence of heads wherever no block is partial. On the very case that fails it either holds, and speaks against
what it would see, or is broken as well, and says what the fault is.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from linverify.bench import Bench, Signature, signature
from linverify.case import Case, parse_case
from linverify.compiled import Compiled
from linverify.errors import LinverifyError
from linverify.inquiry import Outcome, evaluate
from linverify.membership import outside
from linverify.operator import Operator
from linverify.property import Property, Space
from linverify.scout import calls_of
from linverify.verdict import PropertyResult, Status

Ask = Callable[[Property, Case], Status]
Able = Callable[[Property, Case], bool]
# A law chooses tokens, heads and signs by the case's seed.
_SEEDS = 3
# So long may it take; on a CPU it takes some seconds.
SECONDS = 30.0


def anything(law: Property, case: Case) -> bool:  # noqa: ARG001  # of the interface
    """Every law may be asked about every case."""
    return True


@dataclass(frozen=True, slots=True)
class Crossed:
    """Laws by name: those that hold on the failing case, those that are broken on it and held on their own cases."""

    held: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


def crossed(
    failing: Property,
    case: Case,
    laws: Sequence[Property],
    operator: Operator,
    ask: Ask,
    offers: frozenset[str],
    able: Able = anything,
) -> Crossed:
    """Ask laws about a case, changed as little as their spaces want, where it still breaks the law that it broke.

    Args:
        failing: the law that the case breaks.
        case: the smallest.
        laws: that held on their own cases.
        operator: of the case.
        ask: what a law says of a case.
        offers: what the target can do.
        able: whether a law may be asked about a case.
    """
    said: dict[str, set[Status]] = {law.name: set() for law in laws}
    for n in range(_SEEDS):  # every law once before any a second time
        for law in (law for law in laws if Status.VIOLATION not in said[law.name]):
            with suppress(LinverifyError):  # fields that do not go together
                near = nearest(case.with_(seed=case.seed + n), law.space, offers)
                if outside(near, law.space, operator) or not (able(failing, near) and able(law, near)):
                    continue
                if ask(failing, near) is Status.VIOLATION:
                    said[law.name].add(ask(law, near))
    known = {name: found - {Status.UNCHECKED} for name, found in said.items()}
    return Crossed(
        tuple(name for name, found in known.items() if found == {Status.PASS}),
        tuple(name for name, found in known.items() if Status.VIOLATION in found),
    )


@dataclass(frozen=True, slots=True)
class Crossing:
    """What is asked: names of the law that found wrong values first and of laws that hold, and the smallest case that fails."""

    failing: str
    case: Case
    laws: tuple[str, ...]


def crossing(found: Sequence[PropertyResult], laws: Sequence[Property]) -> Crossing | None:
    """Return what there is to ask; None where no law found wrong values.

    Args:
        found: the results of all laws.
        laws: that may be asked.
    """
    names = {law.name for law in laws}
    wrong = [p for p in found if p.required and p.status is Status.VIOLATION and p.failure and p.failure.wrong]
    failing = next((p for p in wrong if p.name in names), None)
    if failing is None or failing.failure is None:
        return None
    asked = tuple(law.name for law in laws if law.against and law.name in held(found))
    return Crossing(failing.name, parse_case(failing.failure.case_id), asked)


def cross(
    bench: Bench,
    failing: Property,
    case: Case,
    laws: Sequence[Property],
    offers: frozenset[str],
    known: dict[tuple[str, str], Status],
    seconds: float = SECONDS,
    before: Compiled | None = None,
) -> Crossed:
    """Ask laws that hold about a case that fails, as far as there is time.

    Args:
        bench: the target.
        failing: the law that the case breaks.
        case: the smallest.
        laws: to ask.
        offers: what the target can do.
        known: what laws have said of cases before, by name and id; what they say here is added.
        seconds: after this nothing is asked.
        before: what was compiled beforehand; None where nothing is compiled.
    """
    end = perf_counter() + seconds
    known[failing.name, case.id] = Status.VIOLATION  # whoever found that

    def ask(law: Property, case: Case) -> Status:
        key = law.name, case.id
        if key not in known:
            if bench.stopped() or perf_counter() > end:
                return Status.UNCHECKED
            known[key] = _said(law, evaluate(bench, law, case), failing.name)
        return known[key]

    able = anything if before is None else compiled(bench, failing, case, before)
    return crossed(failing, case, laws, bench.operator, ask, offers, able)


def compiled(bench: Bench, failing: Property, case: Case, before: Compiled) -> Able:
    """Whether all that a law will call was compiled: to explain a failure is not worth the seconds that a kernel may take.

    Args:
        bench: the target, and what this process asked of it.
        failing: the law that the case breaks; whoever found that has compiled what it called.
        case: the smallest.
        before: what was compiled beforehand.
    """

    def needed(law: Property, about: Case) -> set[Signature]:
        return {signature(call, bench.operator) for call in calls_of(law, about, bench.operator)}

    found = needed(failing, case)
    return lambda law, about: all(x in found or bench.met(x) or before.holds(x) for x in needed(law, about))


def together(parts: Sequence[Crossed]) -> Crossed:
    """What several processes were told, each by some of the laws."""
    return Crossed(tuple(n for part in parts for n in part.held), tuple(n for part in parts for n in part.broken))


def _said(law: Property, outcome: Outcome, failing: str) -> Status:
    """What a law says; a law that holds results to the reference is broken by any wrong value, and says nothing then."""
    failure = outcome.failure
    trivial = law.name != failing and failure is not None and bool(failure.wrong)
    return Status.UNCHECKED if trivial else outcome.status


def held(found: Sequence[PropertyResult]) -> tuple[str, ...]:
    """Return the laws that held on every case that they were asked about."""
    return tuple(p.name for p in found if p.status is Status.PASS and p.cases)


def nearest(case: Case, space: Space, offers: frozenset[str]) -> Case:
    """Return the case with what a space demands; what it cannot have is left, and `outside` tells."""
    changes: dict[str, object] = {"T": max(case.T, space.min_T), "H": max(case.H, space.min_H)}
    if not case.lengths:
        changes["B"] = max(case.B, space.min_B)
    if case.cotangent not in space.cotangents:
        able = "gradients" in offers
        wanted = [c for c in ("both", "o", "none") if c in space.cotangents and (able or c == "none")]
        changes["cotangent"] = (*wanted, *space.cotangents)[0]
    if space.states and case.state not in space.states and ("initial_state" in offers or "absent" in space.states):
        changes["state"] = space.states[0]
    if space.scales and case.scale not in space.scales:
        changes["scale"] = space.scales[0]
    if case.layout not in space.layouts:
        changes["layout"] = space.layouts[0]
    back = changes.get("cotangent", case.cotangent) in ("state", "both")
    if back and "final_state" not in offers:
        changes["cotangent"], back = "o", False
    if space.final_state is not None:
        changes["final_state"] = space.final_state
    elif back:
        changes["final_state"] = True
    return case.with_(**changes)
