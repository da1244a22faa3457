"""An inquiry: one property on one target, from drawn cases to a property result."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

from hypothesis.strategies import sampled_from
from torch import Tensor

from linverify.ablation import Ablated, ablated
from linverify.bench import HANG_SECONDS, Bench
from linverify.case import Case
from linverify.draw import problem
from linverify.explore import climb, draw, shrink
from linverify.leads import lead
from linverify.ledger import added
from linverify.probing import block_hint, shortened
from linverify.problem import Fault, Problem, Refused
from linverify.property import Property
from linverify.score import Unjudgeable
from linverify.strategies import Stratum
from linverify.sweep import told
from linverify.trial import CaseTrial, NotOffered, OutOfTime, Violation
from linverify.verdict import Evidence, Failure, Lead, PropertyResult, Refusal, Status

# The reference is asked some twenty other questions of this length.
_LEAD_TOKENS = 200
# So long may it take to find out what a fault needs, where nothing is compiled for it; it takes one or two.
_ABLATION_SECONDS = 10.0
_NUMERIC = ("wrong_value", "not_finite", "not_bitwise")


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """One case of one property.

    Attributes:
        status: pass, violation, marginal, refused, not_offered or unchecked.
        share: worst share of the budget, None where none was judged.
        failure: for violation and marginal.
        reason: for the rest.
        trial: what was asked, for the reproducer.
    """

    status: Status
    share: float | None = None
    failure: Failure | None = None
    reason: str = ""
    trial: CaseTrial | None = None


def evaluate(bench: Bench, law: Property, case: Case) -> Outcome:
    """Judge one case; whatever the target does comes back as an outcome."""
    trial = CaseTrial(case, bench, problem(case, bench.operator))
    try:
        law.check(trial)
    except Violation as found:
        return Outcome(Status.VIOLATION, trial.worst or None, _failure(case, found), trial=trial)
    except Fault as fault:
        message = f"the target {_PROCESS[fault.kind]}: {fault.message}"
        failure = Failure(
            case.id, _sizes(case), Evidence(kind=fault.kind, message=fault.message), diagnosis=message, log=fault.log
        )
        return Outcome(Status.VIOLATION, None, failure, trial=trial)
    except Refused as refusal:
        return Outcome(Status.REFUSED, reason=f"{refusal.kind}: {refusal.message}")
    except NotOffered as reason:
        return Outcome(Status.NOT_OFFERED, reason=str(reason))
    except OutOfTime as reason:
        return Outcome(Status.UNCHECKED, reason=str(reason))
    except Unjudgeable as result:
        return Outcome(
            Status.UNCHECKED,
            reason=f"{case.dtype} cannot hold the intermediate values of {result} in regime {case.regime}",
        )
    if trial.marginal is not None:
        return Outcome(Status.MARGINAL, trial.worst, _failure(case, trial.marginal), trial=trial)
    return Outcome(Status.PASS, trial.worst if trial.judged else None, trial=trial)


_PROCESS = {
    "crash": "crashed",
    "hang": "hung",
    "exit": "ended its process",
    "out_of_memory": "ran out of memory",
}


def _failure(case: Case, found: Violation) -> Failure:
    return Failure(
        case.id, _sizes(case), found.evidence, found.location, found.wrong, found.right, diagnosis=found.diagnosis
    )


def _sizes(case: Case) -> dict[str, int]:
    return {a: getattr(case, a) for a in "BTHKV"} | ({"G": case.G} if case.G else {})


@dataclass(eq=False)
class Inquiry:
    """One property on one target.

    Attributes:
        bench: the target.
        law: the property.
        required: whether a violation decides.
        strata: what to draw.
        seed: of the session.
        shrink_seconds: time for the search of a smaller failing case.
        climb_seconds: time for the search of a case that uses more of its budget, where the law judges by one.
        expired: whether the session's time is up.
        judged: told of every judged case (id, share).
        refusals: shared by the properties of a target: (kind, message) to the smallest case and the count.
        reproduce: writes the reproducer of a failure; its path, or "".
        explain: whether more cases are asked to say what a failure has to do with.
        offers: what the target can do, dtypes: of the run, widths: the least K and V; for what a failure does not need.
    """

    bench: Bench
    law: Property
    required: bool
    strata: tuple[Stratum, ...]
    seed: int
    shrink_seconds: float
    climb_seconds: float
    expired: Callable[[], bool]
    judged: Callable[[str, float | None], None]
    refusals: dict[str, Refusal]
    reproduce: Callable[[Outcome], str]
    explain: bool = True
    offers: frozenset[str] = frozenset()
    dtypes: tuple[str, ...] = ()
    widths: tuple[int, int] | None = None
    _known: dict[str, Outcome] = field(default_factory=dict)
    _asked: int = 0
    _refused: int = 0
    _worst: float | None = None
    _marginal: Outcome | None = None
    _reasons: dict[Status, str] = field(default_factory=dict)

    def cases(self) -> tuple[tuple[Stratum, tuple[Case, ...]], ...]:
        """The cases of every stratum, as they will be asked."""
        return tuple((s, draw(s.strategy, s.cases, self._seed(s))) for s in self.strata)

    def _seed(self, stratum: Stratum) -> int:
        """Strata differ, and properties with one space draw the same cases: they share references and results."""
        return zlib.crc32(f"{self.seed}/{stratum.label}".encode())

    def run(self) -> PropertyResult:
        """Ask the drawn cases; shrink the first that fails."""
        start = perf_counter()
        first: tuple[Case, Outcome] | None = None
        for stratum, cases in self.cases():
            for case in cases:
                if self.expired():
                    self._reasons[Status.UNCHECKED] = "time ran out"
                    break
                outcome = self._evaluate(case)
                self._count(case, outcome)
                if outcome.status is Status.VIOLATION and self.law.lists:
                    first = first or (case, outcome)
                elif outcome.status is Status.VIOLATION:
                    return replace(self._violated(stratum, case, outcome), seconds=perf_counter() - start)
        if self.law.lists:
            return replace(self._listed(first), seconds=perf_counter() - start)
        broken = self._climbed()
        return replace(self._unbroken() if broken is None else broken, seconds=perf_counter() - start)

    def _listed(self, first: tuple[Case, Outcome] | None) -> PropertyResult:
        """The result of a law that lists what it finds, with the first case that is wrong."""
        said = told(self.bench.configurations)
        if first is None:
            found = self._unbroken()
            return replace(found, note=found.note or said) if found.cases else found
        case, outcome = first
        assert outcome.failure is not None
        failure = replace(outcome.failure, original_case_id=case.id)
        return self._result(Status.VIOLATION if self.required else Status.REPORTED, failure, said)

    def _climbed(self) -> PropertyResult | None:
        """Search each stratum for cases nearer to the line; the result if one lies beyond it."""
        if self._worst is None or not self.climb_seconds:
            return None
        for stratum in self.strata:
            broken: list[Case] = []

            def height(case: Case, broken: list[Case] = broken) -> float | None:
                outcome = self._evaluate(case)
                self._count(case, outcome)
                if outcome.status is Status.VIOLATION:
                    broken.append(case)
                return outcome.share

            def enough(broken: list[Case] = broken) -> bool:
                return bool(broken) or self.expired()

            # where every shape is compiled anew, only the tensors of cases already asked are varied
            asked = draw(stratum.strategy, stratum.cases, self._seed(stratum)) if self.bench.compiles else ()
            strategy = sampled_from(asked) if asked else stratum.strategy
            seconds = self.climb_seconds / len(self.strata)
            climb(strategy, self._seed(stratum), height, seconds, enough)
            if broken:
                return self._violated(stratum, broken[0], self._known[broken[0].id])
        return None

    def _count(self, case: Case, outcome: Outcome) -> None:
        if outcome.status in (Status.NOT_OFFERED, Status.UNCHECKED):
            self._reasons[outcome.status] = outcome.reason
        elif outcome.status is Status.REFUSED:
            self._refused += 1
            self._refuse(case, outcome.reason)
        else:
            self._asked += 1
            self._worst = max((s for s in (self._worst, outcome.share) if s is not None), default=None)
            self._use(case, outcome)
            if outcome.status is Status.MARGINAL:
                self._marginal = self._marginal or outcome

    def _result(self, status: Status, failure: Failure | None = None, note: str = "") -> PropertyResult:
        return PropertyResult(
            self.law.name,
            status,
            self.required,
            self._asked,
            self._refused,
            worst_budget_fraction=self._worst,
            failure=failure,
            note=note,
        )

    def _unbroken(self) -> PropertyResult:
        if self._asked == 0:
            if self._refused:
                return self._result(Status.REFUSED, note=f"the target refused all {self._refused} cases")
            status = Status.NOT_OFFERED if Status.NOT_OFFERED in self._reasons else Status.UNCHECKED
            return self._result(status, note=self._reasons.get(status, "no case could be drawn"))
        if self._marginal is not None:
            return self._result(Status.MARGINAL, self._marginal.failure)
        return self._result(Status.PASS, note=self._reasons.get(Status.UNCHECKED, ""))

    def _use(self, case: Case, outcome: Outcome) -> None:
        """Let the session and the budget table know of a drawn case; reported laws ask beyond the domain and do not count."""
        self.judged(case.id, outcome.share)
        if outcome.trial is not None and self.required:
            for name, share in outcome.trial.shares.items():
                self.bench.used(name, case.dtype, share, self.bench.precision(case))
            self.bench.note_worst(case, outcome.trial.own)

    def _evaluate(self, case: Case) -> Outcome:
        if case.id not in self._known:
            found = evaluate(self.bench, self.law, case)
            if found.status is not Status.VIOLATION:  # the tensors of a trial are needed for a reproducer only
                self._known[case.id] = replace(found, trial=None)
                return found
            self._known[case.id] = found
        return self._known[case.id]

    def _violated(self, stratum: Stratum, case: Case, outcome: Outcome) -> PropertyResult:
        kind = _process_kind(outcome)

        def fails(smaller: Case) -> bool:
            found = self._evaluate(smaller)
            return found.status is Status.VIOLATION and _process_kind(found) == kind

        again = self._asked_again(case, kind) if kind else ""
        if again:
            # What happens now and then cannot be shrunk: every smaller case would seem to be fine.
            assert outcome.failure is not None
            diagnosis = f"{outcome.failure.diagnosis}; {again}"
            failure = replace(outcome.failure, diagnosis=diagnosis, original_case_id=case.id)
            return self._result(Status.VIOLATION if self.required else Status.REPORTED, failure)
        smallest = self._smallest(stratum, case, fails, kind)
        smallest = shortened(smallest, self.law.space.min_T, fails) if self.shrink_seconds else smallest
        left = self._ablated(smallest, kind)
        found = self._evaluate(left.case)
        assert found.failure is not None
        failure = replace(found.failure, original_case_id=case.id, reproducer=self.reproduce(found))
        failure = replace(failure, needs=left.needs, spare=left.spare, leads=_leads(failure))
        if kind == "" and self.explain:
            failure = self._led(outcome, found, failure, left.case)
        return self._result(Status.VIOLATION if self.required else Status.REPORTED, failure)

    def _ablated(self, case: Case, kind: str) -> Ablated:
        """What the fault needs of a case, as far as there is time to ask; a process that ends is dear on a GPU."""
        if not self.explain or kind == "hang" or (kind and self.bench.compiles):
            return Ablated(case, (), ())
        dear = self.bench.compiles and self.shrink_seconds > 0
        end = perf_counter() + (self.shrink_seconds if dear else max(self.shrink_seconds, _ABLATION_SECONDS))

        def ask(smaller: Case) -> Status:
            if self.expired() or perf_counter() > end:
                return Status.UNCHECKED
            found = self._evaluate(smaller)
            other = found.status is Status.VIOLATION and _process_kind(found) != kind
            return Status.UNCHECKED if other else found.status

        return ablated(
            case,
            self.bench.operator,
            self.law.space,
            ask,
            offers=self.offers,
            dtypes=self.dtypes,
            widths=None if self.bench.compiles else self.widths,
            goes_on=self.shrink_seconds > 0,
        )

    def _smallest(self, stratum: Stratum, case: Case, fails: Callable[[Case], bool], kind: str) -> Case:
        """Shrink; a hang with less patience, which the smallest case must survive."""
        seed, known = self._seed(stratum), self.bench.examples
        examples = None if known is None else known.within(f"{self.law.space!r} {stratum.label}")
        if kind != "hang" or not self.shrink_seconds:
            return shrink(stratum.strategy, stratum.cases, seed, case, fails, self.shrink_seconds, examples)
        self.bench.hurried = True
        try:
            seconds = max(self.shrink_seconds, HANG_SECONDS / 2)
            found = shrink(stratum.strategy, stratum.cases, seed, case, fails, seconds, examples)
        finally:
            self.bench.hurried = False
        if found != case:
            self._known[found.id] = evaluate(self.bench, self.law, found)
        return found if _process_kind(self._known[found.id]) == kind else case

    def _asked_again(self, case: Case, kind: str) -> str:
        """Ask a case that ended its process once more; a sentence where it does not happen again."""
        if kind == "hang":
            return ""
        repeated = evaluate(self.bench, self.law, case)
        if _process_kind(repeated) == kind:
            return ""
        return "asked again it did not: a race, something left behind by an earlier call, or somebody else ended the process"

    def _led(self, first: Outcome, last: Outcome, failure: Failure, case: Case) -> Failure:
        """Say of a wrong value which question it answers and what it has to do with blocks, before what it looks like.

        The case that was drawn has more in it than the smallest one, so it is looked at first.
        """
        name = "the final state" if failure.evidence.result == "state" else failure.evidence.result
        drawn = self._lead(first)
        question = drawn or self._lead(last)
        blocks = block_hint(case, name, self.law.space.max_T, self._status)
        said = [f"{question} (in the case that was drawn)" if drawn and first is not last else question, blocks]
        leads = [Lead(kind, text) for kind, text in (("question", question), ("blocks", blocks)) if text]
        diagnosis = "; ".join(text for text in said if text) or failure.diagnosis
        return replace(failure, diagnosis=diagnosis, leads=(*leads, *failure.leads))

    def _status(self, case: Case) -> Status:
        return self._evaluate(case).status

    def _lead(self, outcome: Outcome) -> str:
        """Which other question the wrong results answer, where they were held to the reference."""
        trial, failure = outcome.trial, outcome.failure
        if trial is None or failure is None or not failure.wrong or trial.case.T > _LEAD_TOKENS:
            return ""
        call, result = trial.asked.call, trial.asked.result
        if call is None or result is None or call.problem is not trial.problem:
            return ""

        def answers(other: Problem) -> Mapping[str, Tensor]:
            return self.bench.judge.answer(other).reference

        return lead(trial.problem, trial.operator, result.named(), failure.wrong, answers)

    def _refuse(self, case: Case, reason: str) -> None:
        kind, _, message = reason.partition(": ")
        self.refusals[reason] = added(self.refusals.get(reason), Refusal(kind, message, case.id, 1))


def _leads(failure: Failure) -> tuple[Lead, ...]:
    """What a failure says by itself: what its error looks like, or what happened."""
    e = failure.evidence
    kind = "finding" if e.kind not in _NUMERIC else "shape" if failure.wrong else "relation"
    text = failure.diagnosis or e.message
    return (Lead(kind, text),) if text else ()


def _process_kind(outcome: Outcome) -> str:
    """The process outcome of a failure, "" for a value: shrinking must not turn one into another."""
    kind = outcome.failure.evidence.kind if outcome.failure else ""
    return kind if kind in _PROCESS else ""
