"""Records of a self-test: what became of every mutant, and the share that was caught."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Outcome(StrEnum):
    """What became of a mutant.

    Only caught and survived count: an equivalent mutant is no mistake, and one that refuses computes nothing wrong.
    """

    CAUGHT = "caught"
    SURVIVED = "survived"
    EQUIVALENT = "equivalent"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MutantResult:
    """One mutant.

    Attributes:
        name: tells it from the others of its target.
        family: the kind of mistake.
        what: the change in a few words.
        line: in the target's file.
        diff: lines taken away and added.
        outcome: see Outcome.
        operator: the operator under which it was caught, or else differed from the original.
        law: the property that caught it first, "" otherwise.
        case_id: the case that caught it, or else one on which it differs from the original; "" where there is none.
        reason: the diagnosis, or how it differs, or why it was left out.
        laws: every property that caught it, where each was asked; else the first.
        questions: property and case pairs that it was asked until it was caught, or in all.
        seconds: wall time.
    """

    name: str
    family: str
    what: str
    line: int
    diff: str
    outcome: Outcome
    operator: str = ""
    law: str = ""
    case_id: str = ""
    reason: str = ""
    laws: tuple[str, ...] = ()
    questions: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TargetScore:
    """All mutants of one target.

    Attributes:
        target: as the user wrote it.
        operators: what its functions are held to.
        file: where its source lies.
        source: digest of that source, by which a later run knows it again.
        mutants: in the order of the source.
        unjudged: mutants that there was no time for.
        excluded: property and case pairs that the original itself breaks, and which therefore convict nobody.
        seconds: wall time.
    """

    target: str
    operators: tuple[str, ...]
    file: str
    source: str
    mutants: tuple[MutantResult, ...]
    unjudged: int = 0
    excluded: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def tally(self) -> Mapping[Outcome, int]:
        """Mutants by outcome."""
        return Counter(m.outcome for m in self.mutants)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A whole run, as ``--json`` writes it.

    Attributes:
        linverify_version: that made it.
        environment: what a reader must know to repeat the run, as text by name.
        options: what a later run must have in common to go on from here.
        seed, profile: of the cases.
        targets: in order.
        each: whether every property was asked about every mutant.
        schema_version: of the record.
        started: when, in UTC.
    """

    linverify_version: str
    environment: Mapping[str, str]
    options: str
    seed: int
    profile: str
    targets: tuple[TargetScore, ...]
    each: bool = False
    schema_version: int = 1
    started: str = ""

    @property
    def exit_code(self) -> int:
        """1 where a mutant survived, else 3 where one was not judged or none counts, else 0."""
        tally = tallied(self.targets)
        if tally[Outcome.SURVIVED]:
            return 1
        return 3 if any(t.unjudged for t in self.targets) or not tally[Outcome.CAUGHT] else 0


@dataclass(frozen=True, slots=True)
class Row:
    """Mutants that have something in common."""

    label: str
    tally: Mapping[Outcome, int] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Caught of those that count; None where none does."""
        return share(self.tally)


def tallied(targets: Sequence[TargetScore]) -> Counter[Outcome]:
    """Mutants of all targets by outcome."""
    return Counter(m.outcome for t in targets for m in t.mutants)


def share(tally: Mapping[Outcome, int]) -> float | None:
    """Caught of those that count; None where none does."""
    caught, survived = tally.get(Outcome.CAUGHT, 0), tally.get(Outcome.SURVIVED, 0)
    return caught / (caught + survived) if caught + survived else None


def by_family(targets: Sequence[TargetScore]) -> tuple[Row, ...]:
    """Mutants by kind of mistake, the most frequent first."""
    rows: dict[str, Counter[Outcome]] = {}
    for mutant in (m for t in targets for m in t.mutants):
        rows.setdefault(mutant.family, Counter())[mutant.outcome] += 1
    return tuple(Row(n, c) for n, c in sorted(rows.items(), key=lambda item: (-item[1].total(), item[0])))


@dataclass(frozen=True, slots=True)
class LawRow:
    """What a property caught.

    Attributes:
        law: its name.
        first: mutants that it was the first to catch.
        alone: mutants that no other property caught.
        all: mutants that it caught, whoever else did.
    """

    law: str
    first: int
    alone: int
    all: int


def by_law(targets: Sequence[TargetScore]) -> tuple[LawRow, ...]:
    """What each property caught, the most frequent first; `alone` and `all` say something where each was asked."""
    caught = [m for t in targets for m in t.mutants if m.outcome is Outcome.CAUGHT]
    first, every = Counter(m.law for m in caught), Counter(law for m in caught for law in m.laws)
    alone = Counter(m.law for m in caught if len(m.laws) == 1)
    rows = [LawRow(law, first[law], alone[law], every[law]) for law in every]
    return tuple(sorted(rows, key=lambda r: (-r.first, -r.all, r.law)))
