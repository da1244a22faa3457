"""Verdicts: a closed set of statuses, the four facts behind them, and the records that reports render."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from linverify.insight import Insight


class Status(StrEnum):
    """Outcome of one property on one target."""

    PASS = "pass"
    VIOLATION = "violation"
    MARGINAL = "marginal"
    REPORTED = "reported"
    REFUSED = "refused"
    NOT_OFFERED = "not_offered"
    NOT_APPLICABLE = "not_applicable"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The four facts: how many, how far, where, how far was allowed.

    Attributes:
        kind: wrong_value, not_finite, not_bitwise, wrong_shape, wrong_dtype, wrong_type, wrong_length, missing_gradient,
            mutated_input, not_contiguous, out_of_bounds, aliased, late_write, kept_result, interference, race,
            uninitialised, crash, hang, exit, out_of_memory.
        result: which tensor: o, state, dq ...; "" where none is meant.
        how_many: elements beyond what was allowed.
        of: elements in all.
        how_far: largest absolute error.
        where: index of the worst element, as "b=0, t=32, h=1, v=5".
        expected, got: values there.
        allowed: absolute error allowed there.
        share: share of the budget used; the line is at 1. Infinite where no budget applies.
        statistic: the statistic that decided: maximum, rms, head, row, column, tile, filter ...
        message: what happened, for outcomes without numbers.
    """

    kind: str
    result: str = ""
    how_many: int = 0
    of: int = 0
    how_far: float = 0.0
    where: str = ""
    expected: float | None = None
    got: float | None = None
    allowed: float = 0.0
    share: float = float("inf")
    statistic: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the error sits.

    Attributes:
        first_bad_t: first time step beyond the budget; None where there is no time axis.
        heads: affected (batch, head) pairs of all, as text.
        times: affected positions, modulo the suspected chunk if they repeat, as text.
        features: affected feature tile, as text.
        suspected_chunk: chunk size that explains the positions, or None.
    """

    first_bad_t: int | None = None
    heads: str = ""
    times: str = ""
    features: str = ""
    suspected_chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Lead:
    """Where to look.

    Attributes:
        kind: question (wrong results answer another question), blocks (what it has to do with blocks of tokens), finding (what
            happened, for outcomes without numbers), shape (what the error looks like), relation (two sides differ).
        text: one sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The minimal case that breaks a property.

    Attributes:
        case_id: replays it.
        sizes: of the shrunk case.
        evidence: the four facts.
        location: where.
        wrong, right: results of this case beyond the budget, and within it; () where they were not held to the reference.
        needs: what this case holds without which the law holds, each a few words; () where it was not looked into.
        spare: what the law asks for as well, and this case fails without.
        leads: where to look, the most telling first.
        diagnosis: the most telling leads in one sentence.
        reproducer: path of a stand-alone script; "" where none was written.
        original_case_id: the case before shrinking.
        log: tail of the worker's standard error, for process outcomes.
    """

    case_id: str
    sizes: Mapping[str, int]
    evidence: Evidence
    location: Location = field(default_factory=Location)
    wrong: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    leads: tuple[Lead, ...] = ()
    diagnosis: str = ""
    reproducer: str = ""
    original_case_id: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class PropertyResult:
    """One property on one target.

    Attributes:
        name: of the property.
        status: see Status.
        required: whether a violation decides the verdict.
        cases: judged.
        refused: cases the target refused.
        seconds: wall time.
        worst_budget_fraction: largest share of the budget over the judged cases; None where no budget applies.
        failure: for violation, marginal and reported.
        note: one sentence on why a property was not offered, not applicable, refused or unchecked.
    """

    name: str
    status: Status
    required: bool
    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    worst_budget_fraction: float | None = None
    failure: Failure | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Alike:
    """What several laws say alike.

    Attributes:
        text: the sentence.
        laws: that say it, in the order they were run.
    """

    text: str
    laws: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """All broken laws of a target taken together: what follows from the verdicts, and nothing else.

    Attributes:
        laws: the required laws that are broken, in the order they were run.
        wrong: results that are wrong in their cases.
        right: results that no judged case found wrong.
        reading: what follows from which results are wrong and which are right, a sentence each.
        needs: what each of their smallest cases needs.
        spare: what some of their smallest cases do without, and none needs.
        leads: where to look, the most telling first, with the laws that say so.
        against: what laws that hold on the failing case itself speak against, with these laws.
    """

    laws: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    leads: tuple[Alike, ...] = ()
    against: tuple[Alike, ...] = ()


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """Worst share of the budget for one result in one dtype."""

    result: str
    dtype: str
    cases: int
    worst: float
    precision_class: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A limitation: an exception on valid input, with its smallest case."""

    kind: str
    message: str
    case_id: str
    count: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """One autotuning configuration of one kernel.

    Attributes:
        kernel: module and name.
        configuration: as the autotuner spells it.
        status: pass, violation, marginal, refused (an exception, or no room on the device), unchecked.
        case_id: on which it was forced.
        note: one sentence where it is not a pass.
    """

    kernel: str
    configuration: str
    status: Status
    case_id: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """All of one target.

    Attributes:
        target: as the user wrote it.
        operator: its name.
        form, backend: as declared, or "".
        verdict: pass, violation or unchecked.
        reason: one sentence where the verdict is unchecked.
        properties: in the order they were run.
        budget: worst shares by result and dtype.
        refusals: limitations.
        notes: everything else a reader should know (what is not offered, which precision class judged fp32 ...).
        cases: distinct cases judged.
        seconds: wall time by part: import, compile_and_run, reference, judge, total.
        insight: where the error comes from, how it grows, which recipe it fits.
        file, line: where the function is defined, the path relative to the current folder where it lies in it; "" and 0
            where unknown.
        configurations: of autotuned kernels, each forced and judged; () where that was not asked for.
        synthesis: the broken laws taken together; None where none is broken.
    """

    target: str
    operator: str
    form: str
    backend: str
    verdict: str
    reason: str = ""
    properties: tuple[PropertyResult, ...] = ()
    budget: tuple[BudgetUse, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    cases: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    insight: Insight = field(default_factory=Insight)
    file: str = ""
    line: int = 0
    configurations: tuple[Configuration, ...] = ()
    synthesis: Synthesis | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run, as ``--json`` writes it.

    Attributes:
        linverify_version: that made it.
        environment: what a reader must know to repeat the run, as text by name.
        seed: same seed, same cases.
        profile: how much was asked.
        results: one a target, in order.
        schema_version: of the record.
        started: when, in UTC, as ISO 8601 to the second; "" where unknown.
        laws: what each property demands, in one sentence by name.
        replay_options: what a replay must repeat beside target, operator and case, as words of a command line.
    """

    linverify_version: str
    environment: Mapping[str, str]
    seed: int
    profile: str
    results: tuple[TargetResult, ...]
    schema_version: int = 1
    started: str = ""
    laws: Mapping[str, str] = field(default_factory=dict)
    replay_options: str = ""

    @property
    def exit_code(self) -> int:
        """1 for a violation, else 3 for anything unchecked, else 0."""
        verdicts = {r.verdict for r in self.results}
        return 1 if "violation" in verdicts else 3 if "unchecked" in verdicts or not verdicts else 0
