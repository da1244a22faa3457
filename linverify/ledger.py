"""The ledger of an examination: what it has seen besides the verdicts, as one process hands it to another.

Several processes may ask the laws of one target, each some of them. What they learned meets here: shares of the budget, worst
cases, refusals, and where the time went.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from linverify.case import Case, parse_case
from linverify.verdict import Configuration, Refusal


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was seen.

    Attributes:
        usage: (result, dtype) to cases, worst share of the budget, precision class.
        worst: (result, dtype) to the largest share and its case.
        bounds: of references that were held to the next rung, in units of the budget's scale.
        single: whether fp64 cases are right to float32 only.
        refusals: by kind and message.
        cases: ids of the cases judged.
        seconds: by part.
        settled: results judged, by what settled them: screened, analytic, realised.
        configurations: of autotuned kernels, forced and judged.
    """

    usage: Mapping[tuple[str, str], tuple[int, float, str]] = field(default_factory=dict)
    worst: Mapping[tuple[str, str], tuple[float, Case]] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()
    single: bool = False
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    cases: frozenset[str] = frozenset()
    seconds: Mapping[str, float] = field(default_factory=dict)
    settled: Mapping[str, int] = field(default_factory=dict)
    configurations: tuple[Configuration, ...] = ()


def merged(parts: Sequence[Ledger]) -> Ledger:
    """Return what all of them have seen; the order of the parts decides between equals only."""
    usage: dict[tuple[str, str], tuple[int, float, str]] = {}
    worst: dict[tuple[str, str], tuple[float, Case]] = {}
    refusals: dict[str, Refusal] = {}
    seconds: dict[str, float] = {}
    settled: Counter[str] = Counter()
    for part in parts:
        for key, (cases, share, precision) in part.usage.items():
            known = usage.get(key, (0, 0.0, precision))
            usage[key] = (known[0] + cases, max(known[1], share), precision)
        for key, (share, case) in part.worst.items():
            if key not in worst or share > worst[key][0]:
                worst[key] = (share, case)
        for reason, refusal in part.refusals.items():
            refusals[reason] = added(refusals.get(reason), refusal)
        for name, value in part.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
        settled.update(part.settled)
    return Ledger(
        usage,
        worst,
        tuple(b for part in parts for b in part.bounds),
        any(part.single for part in parts),
        refusals,
        frozenset(c for part in parts for c in part.cases),
        seconds,
        dict(settled),
        tuple(dict.fromkeys(c for part in parts for c in part.configurations)),
    )


def added(known: Refusal | None, found: Refusal) -> Refusal:
    """Return one refusal for two of the same kind and message: the smallest case, and how many cases in all."""
    if known is None:
        return found
    smallest = min((known, found), key=lambda r: volume(r.case_id))
    return Refusal(found.kind, found.message, smallest.case_id, known.count + found.count)


def volume(case_id: str) -> int:
    """Tokens times heads of a case."""
    case = parse_case(case_id)
    return case.T * case.B * case.H
