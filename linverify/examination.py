"""An examination: one function of a target, bound to its operator, and asked law by law.

A law is left out only with its reason. Whoever runs an examination decides the order, and may share the laws out among several
processes, each with an examination of its own; one of them then takes over what the others saw, and finishes the record.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from time import perf_counter

from hypothesis.strategies import just

from linverify import registry, reproducer, sanitizer
from linverify.bench import COMPILE_SECONDS, HANG_SECONDS, Bench
from linverify.binding import Binding, FunctionInfo, bind
from linverify.bystander import Subject
from linverify.caches import Caches
from linverify.case import Case
from linverify.claims import claimed
from linverify.company import OWN_PROCESS, started_for
from linverify.compiled import Compiled
from linverify.conclusion import conclude
from linverify.crossing import SECONDS, Crossed, cross, crossing, held
from linverify.declared import declared
from linverify.errors import EmptyCaseSpace
from linverify.fingerprint import fingerprint
from linverify.implementation import Claim
from linverify.inquiry import Inquiry, Outcome
from linverify.insight import Insight, RecipeMatch
from linverify.insights import Gatherer, Worst
from linverify.ledger import Ledger, merged
from linverify.membership import outside
from linverify.needs import ANY, Need, of_laws
from linverify.notes import notes
from linverify.on_request import missing
from linverify.parameters import with_parameters
from linverify.plan import Listener, Plan
from linverify.profile import INTERPRETED, profile
from linverify.property import Property
from linverify.runner import Runner
from linverify.share import as_claimed
from linverify.shared import Shared
from linverify.standing import Elsewhere, Standing
from linverify.strategies import Stratum, strata
from linverify.sweep import Lanes
from linverify.synthesis import synthesis
from linverify.target import TargetSpec, from_here
from linverify.twin import twin_text
from linverify.verdict import BudgetUse, PropertyResult, Refusal, Status, TargetResult
from linverify.warmup import Compilers, compile_ahead, lanes, started

_LATER = 4
# Triton's interpreter multiplies bfloat16 tiles wrongly: a 32 x 32 product is off by 5e10 in Triton 3.9; fp16 and fp32 are
# exact.
INTERPRETED_DTYPES = ("fp32", "fp16", "tf32", "fp64")


class Examination:
    """One function of a target.

    Attributes:
        plan: what is asked.
        name: of the function, as the report gives it.
        laws: that are asked, in order: basic ones first.
        known: results by law that an interrupted run left.
    """

    def __init__(
        self,
        plan: Plan,
        spec: TargetSpec,
        runner: Runner,
        function: FunctionInfo,
        claim: Claim,
        listener: Listener,
        shared: Shared,
    ) -> None:
        self.plan, self.spec, self.runner, self.claim, self.listener = plan, spec, runner, claim, listener
        self.claims = claimed(claim.claims, plan.claims)
        stated = with_parameters(registry.operator(claim.operator), plan.operator_parameters)
        self.operator = as_claimed(stated, self.claims)
        self.binding: Binding = bind(
            self.operator, function, settings={**claim.settings, **plan.settings}, claims=self.claims
        )
        self._bind(runner)
        self.profile = profile(plan.profile, plan.time)
        self.triton = function.uses_triton or claim.backend == "triton"
        self.backend = "triton" if self.triton else claim.backend
        judge, answers = shared.of(self.operator, plan.device, plan.operator_parameters)
        self.before, self.counted = dict(judge.seconds), dict(judge.counts)
        self.bench = Bench(runner, self.operator, judge, plan.device, self.claims, answers)
        self.bench.declaration = declared(self.claims.get("recipe"))
        self.bench.compiles = plan.device.startswith("cuda")
        axes = {i.name: "".join(i.axes) for i in self.operator.inputs}
        self.subject = Subject(spec, self.binding, axes, plan.device, plan.pinning)
        if plan.autotune == "all" and self.triton:
            count, seconds = lanes(plan.workers), HANG_SECONDS + COMPILE_SECONDS
            self.bench.lanes = Lanes(lambda: self._another(plan.pinning), count, seconds)
        if plan.sanitizer:
            self.bench.sanitizer = sanitizer.ready(self.subject)
        self.start = perf_counter()
        self.elsewhere = Ledger()
        self._inquiries: dict[str, Inquiry | PropertyResult] = {}
        self._crossed: dict[tuple[str, str], Status] = {}
        self.bench.stopped, self.bench.settled = self._expired, listener.configuration_settled
        self.bench.examples = shared.examples
        self.notes = list(self.binding.notes)
        self.refusals, self.cases = dict[str, Refusal](), set[str]()
        self.name = f"{plan.target}::{function.name}" if spec.function is None and spec.kind == "file" else plan.target
        self.bench.configurations = list(plan.swept.get(self.name, ()))
        self.file, self.line, self.compile_seconds = function.file, function.line, 0.0
        self.dtypes = self._dtypes()
        chosen = [registry.property_named(n) for n in plan.properties] or [
            law for law in registry.properties().values() if plan.sanitizer or "sanitizer" not in law.needs
        ]
        self.laws = sorted(chosen, key=lambda law: not law.basic)
        self.known = {p.name: p for p in plan.known.get(self.name, ())}
        if taken := sum(law.name in self.known for law in self.laws):
            self.notes.append(f"{taken} of {len(self.laws)} properties were judged by the run that this one resumes")

    def prepare(self, compilers: Compilers | None = None, ready: Callable[[str], None] = lambda _: None) -> None:
        """Draw what the laws ask; on a GPU, compile for it.

        Args:
            compilers: that were started before, and are ended here.
            ready: is told each law, and each dtype that is studied, when all is compiled for it.
        """
        for law in self.laws:
            self._draw(law)
        start = perf_counter()
        with compilers or Compilers(lambda: started(self.plan, self.spec, self.plan.pinning)) as able:
            if self.bench.compiles and any(law.compiled_for for law in self.laws):
                self._compile(able, ready)
        self.compile_seconds = perf_counter() - start

    def begin(self, law: Property) -> None:
        """Start the process that a law compares with, some time before the law is asked."""
        self._draw(law)
        if isinstance(self._inquiries.get(law.name), Inquiry):
            started_for(law.name, self.bench, self.claim.form, self.subject)

    def _draw(self, law: Property) -> None:
        if law.name not in self.known and law.name not in self._inquiries:
            self._inquiries[law.name] = self.inquiry(law)

    def ask(self, law: Property, standing: Standing, only: Case | None = None) -> tuple[PropertyResult, Standing]:
        """Ask one law, or say why not; return what then holds as well.

        Args:
            law: one of `laws`.
            standing: what the laws asked so far say.
            only: the case of a replay.
        """
        if law.name in self.known:
            result, silent = self.known[law.name], False
        else:
            result, silent = self._asked(law, standing, only)
        broken = result.required and result.status is Status.VIOLATION
        return result, standing.also(Standing(broken, not silent))

    def _asked(self, law: Property, standing: Standing, only: Case | None) -> tuple[PropertyResult, bool]:
        """The result of a law, and whether it found that o carries no gradient."""
        inquiry = self._inquiries.pop(law.name, None) or self.inquiry(law, only)
        if isinstance(inquiry, PropertyResult):
            return inquiry, False
        required = self._required(law)
        if not standing.gradients and "gradients" in law.needs:
            return PropertyResult(law.name, Status.NOT_OFFERED, required, note="o carries no gradient"), False
        if self._expired() or (standing.broken and self.plan.fail_fast):
            why = "time ran out before it was asked" if self._expired() else "the first violation ended it"
            return PropertyResult(law.name, Status.UNCHECKED, required, note=why), False
        if standing.broken:
            inquiry.shrink_seconds /= _LATER  # a broken kernel breaks many laws; the first gets the time
        started_for(law.name, self.bench, self.claim.form, self.subject)
        result = inquiry.run()
        return result, result.status is Status.NOT_OFFERED and "gradients" in law.needs

    def study(self, dtype: str) -> Insight:
        """Ask for what there is to tell of a dtype besides verdicts, and needs cases of its own."""
        return self._gatherer().study(dtype) if dtype in self.dtypes else Insight()

    def look(self, worst: Worst, recipes: Sequence[RecipeMatch]) -> Insight:
        """Look into cases that some process has judged; `recipes` were found by `study`."""
        return self._gatherer().look({k: found for k, found in worst.items() if k[1] in self.dtypes}, recipes)

    def cross(self, failing: Property, case: Case, laws: Sequence[Property], seconds: float = SECONDS) -> Crossed:
        """Ask laws that hold about a case that fails."""
        for law in laws:
            self._draw(law)
        before = self._compiled() if self.bench.compiles and self.triton else None
        return cross(self.bench, failing, case, laws, self.binding.capabilities, self._crossed, seconds, before)

    def finish(
        self, results: Sequence[PropertyResult], only: Case | None = None, elsewhere: Elsewhere | None = None
    ) -> TargetResult:
        """Return the record.

        Args:
            results: of all laws, whoever asked them.
            only: the case of a replay.
            elsewhere: what several processes have found out; None to find it out here.
        """
        if self.plan.fail_fast:
            return self._result(results)
        if elsewhere is None:
            found = self._gatherer(short=only is not None).everything(self.dtypes)
            crossed = self._crossing(results) if only is None else Crossed(held(results))
        else:
            found, crossed = elsewhere.insight, elsewhere.crossed
        made = self._result(results)
        said = synthesis(results, made.budget, registry.properties(), crossed)
        return replace(made, insight=found, synthesis=said)

    def _crossing(self, results: Sequence[PropertyResult]) -> Crossed:
        asked = crossing(results, [law for law in self.laws if law.name not in OWN_PROCESS])
        if asked is None:
            return Crossed()
        failing, *laws = (registry.property_named(n) for n in (asked.failing, *asked.laws))
        return self.cross(failing, asked.case, laws)

    def _gatherer(self, *, short: bool = False) -> Gatherer:
        short = short or (self.triton and not self.plan.device.startswith("cuda")) or bool(self.plan.properties)
        return Gatherer(self.bench, self.binding.capabilities, self.profile, self._expired, short)

    def ledger(self) -> Ledger:
        """What this process has seen."""
        judge, bench = self.bench.judge, self.bench
        seconds = {"compile": self.compile_seconds, **bench.seconds}
        seconds |= {k: judge.seconds[k] - self.before.get(k, 0.0) for k in judge.seconds}
        return Ledger(
            dict(bench.usage),
            dict(bench.worst),
            tuple(bench.bounds),
            bench.single,
            dict(self.refusals),
            frozenset(self.cases),
            seconds,
            {k: n - self.counted[k] for k, n in judge.counts.items()},
            tuple(bench.configurations),
        )

    def take(self, others: Sequence[Ledger]) -> None:
        """Take over what other processes have seen of the same target."""
        found = merged([self.ledger(), *others])
        bench = self.bench
        bench.usage, bench.worst, bench.bounds = dict(found.usage), dict(found.worst), list(found.bounds)
        bench.single, self.refusals, self.cases = found.single, dict(found.refusals), set(found.cases)
        bench.configurations = list(found.configurations)
        self.elsewhere = merged(others)

    def close(self) -> None:
        """End the processes that were started for comparison."""
        self.bench.close()

    def _dtypes(self) -> tuple[str, ...]:
        if self.plan.device.startswith("cuda") or not self.triton:
            return self.plan.dtypes
        kept = tuple(d for d in self.plan.dtypes if d in INTERPRETED_DTYPES)
        if kept != self.plan.dtypes:
            self.notes.append(
                "bf16 is unchecked: on a CPU Triton's interpreter multiplies bfloat16 wrongly; check it on a GPU"
            )
        return kept

    def _required(self, law: Property) -> bool:
        key, _, value = law.claim.partition("=")
        claimed = bool(law.claim) and self.claims.get(key) == value
        return law.required or law.name in self.plan.require or claimed

    def _expired(self) -> bool:
        return self.plan.time is not None and perf_counter() - self.start > self.plan.time

    def _left_out(self, law: Property, only: Case | None) -> tuple[Status, str] | None:
        """Why a property is not asked at all."""
        if not law.applies(self.operator):
            return Status.NOT_APPLICABLE, f"says nothing about {self.operator.name}"
        triton, replayed = self.triton, only is not None
        if lacks := missing(law, self.plan, self.binding.capabilities, triton=triton, replayed=replayed):
            return Status.NOT_OFFERED, lacks
        if law.name in self._exclusions():
            return Status.NOT_APPLICABLE, "this is the form it would be compared with"
        why = outside(only, law.space, self.operator) if only is not None and not self.plan.properties else ""
        return (Status.NOT_APPLICABLE, why) if why else None

    def inquiry(self, law: Property, only: Case | None = None) -> Inquiry | PropertyResult:
        """What a law asks of the function (of a replay: on its one case), or why it asks nothing."""
        required, dtypes = self._required(law), self.dtypes
        if (left_out := self._left_out(law, only)) is not None:
            return PropertyResult(law.name, left_out[0], required, note=left_out[1])
        try:
            if not dtypes:
                raise EmptyCaseSpace("no requested dtype can be checked here")
            drawn = strata(
                self.operator,
                self.binding.capabilities,
                law.space,
                profile=self.profile,
                device=self.plan.device,
                dtypes=dtypes,
                claims=self.claims,
                backend=self.backend,
                weight=law.weight,
            )
        except EmptyCaseSpace as reason:
            status = Status.UNCHECKED if not dtypes else Status.NOT_APPLICABLE
            return PropertyResult(law.name, status, required, note=str(reason))
        if only is not None:
            drawn = (Stratum("replay", just(only), 1),)
        if "caches" in law.needs:
            self.bench.caches = Caches(self.subject)
        single = only is not None or law.space.streamed  # nothing smaller is worth minutes
        return Inquiry(
            bench=self.bench,
            law=law,
            required=required,
            strata=drawn,
            seed=self.plan.seed,
            shrink_seconds=0.0 if single or self.plan.fail_fast else self.profile.shrink_seconds,
            explain=not self.plan.fail_fast and not law.space.streamed,
            offers=self.binding.capabilities,
            dtypes=dtypes,
            widths=(INTERPRETED if self.triton else self.profile.widths)[0],
            climb_seconds=self.profile.climb_seconds if only is None and law.climbs else 0.0,
            expired=self._expired,
            judged=lambda case_id, share: self._judged(law.name, case_id, share),
            refusals=self.refusals,
            reproduce=lambda outcome: self._reproduce(law.name, outcome),
        )

    def _compile(self, compilers: Compilers, ready: Callable[[str], None]) -> None:
        known, drawn = self._compiled(), self._drawn()
        if self.triton and not known.done(drawn):
            studies = (Need(d, ANY, self._gatherer().calls(d)) for d in self.dtypes if not self.plan.fail_fast)
            asked = chain(of_laws(self._inquiries.values(), self.operator), studies)
            compile_ahead(asked, self.operator, known, compilers, self._bind, self.listener.note, ready)
        known.finish(drawn)

    def _compiled(self) -> Compiled:
        """What was compiled beforehand for the function, now or in an earlier session."""
        return Compiled(self.plan.target, self.file, f"{self.plan.autotune}|{sorted(self.binding.settings.items())!r}")

    def _drawn(self) -> str:
        """What decides which cases are drawn, with this code."""
        plan, asked = self.plan, [n for n, i in self._inquiries.items() if isinstance(i, Inquiry)]
        return repr((fingerprint(), plan.seed, self.profile, self.dtypes, asked, sorted(self.claims.items())))

    def _another(self, autotune: str) -> Runner:
        runner = started(self.plan, self.spec, autotune)
        self._bind(runner)
        return runner

    def _bind(self, runner: Runner) -> None:
        runner.bind(self.binding, self.operator)

    def _exclusions(self) -> tuple[str, ...]:
        """Properties that would compare the target with itself."""
        return ("form_equivalence",) if twin_text(self.operator, self.claim.form) in ("", self.plan.target) else ()

    def _judged(self, law: str, case_id: str, share: float | None) -> None:
        self.cases.add(case_id)
        self.listener.case_judged(law, case_id, share)

    def _reproduce(self, law: str, outcome: Outcome) -> str:
        try:
            path = reproducer.of_outcome(self.plan, self.spec, self.binding, self.operator, outcome, law)
        except OSError as error:
            self.listener.note(f"no reproducer was written: {error}")
            return ""
        return "" if path is None else str(path)

    def _result(self, results: Sequence[PropertyResult]) -> TargetResult:
        verdict, reason = conclude(results)
        everything = merged([self.ledger(), self.elsewhere])
        imported, total = self.runner.describe().import_seconds, perf_counter() - self.start
        seconds = {"import": imported, **everything.seconds, "total": total}
        found = [*self.notes, *notes(self.bench, self.plan.dtypes, everything.settled)]
        budget = tuple(
            BudgetUse(result, dtype, cases, worst, precision)
            for (result, dtype), (cases, worst, precision) in self.bench.usage.items()
        )
        return TargetResult(
            target=self.name,
            operator=self.operator.name,
            form=self.claim.form,
            backend=self.backend,
            verdict=verdict,
            reason=reason,
            properties=tuple(results),
            budget=budget,
            refusals=tuple(self.refusals.values()),
            notes=tuple(dict.fromkeys(found)),
            cases=len(self.cases),
            seconds=seconds,
            file=from_here(self.file),
            line=self.line,
            configurations=tuple(self.bench.configurations),
        )
