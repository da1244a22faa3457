"""A session: targets, properties and cases in, target results out.

The order: import the target in its worker, bind it, and for every property draw cases, ask, judge, shrink. A property is
left out only with its reason; a verdict of "pass" needs every required property to have been judged on at least one case.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch

from linverify import registry, reproducer, sanitizer
from linverify.bench import Bench
from linverify.binding import Binding, FunctionInfo, bind
from linverify.bystander import Bystander, Subject
from linverify.case import Case
from linverify.compiled import Compiled
from linverify.conclusion import conclude
from linverify.declared import declared
from linverify.errors import CannotCheckError, EmptyCaseSpace, UsageError
from linverify.implementation import Claim
from linverify.inquiry import Inquiry, Outcome
from linverify.insight import Insight
from linverify.insights import gather
from linverify.membership import outside
from linverify.notes import notes
from linverify.parameters import with_parameters
from linverify.plan import Listener, Plan
from linverify.profile import profile
from linverify.property import Property
from linverify.runner import Runner
from linverify.share import as_claimed
from linverify.shared import Shared
from linverify.strategies import Stratum, strata
from linverify.target import TargetSpec, from_here, parse
from linverify.twin import start_twin, twin_text
from linverify.verdict import BudgetUse, PropertyResult, Refusal, Status, TargetResult
from linverify.warmup import compile_ahead, signatures

__all__ = ["Check", "Listener", "Plan", "Shared", "check", "replay"]

_LATER = 4  # a broken kernel breaks many laws; the first gets the time
# Triton's interpreter multiplies bfloat16 tiles wrongly: a 32 x 32 product is off by 5e10 in Triton 3.9; fp16 and fp32 are
# exact.
INTERPRETED_DTYPES = ("fp32", "fp16", "tf32", "fp64")
_ON_REQUEST = {"sanitizer": "asked with --sanitizer only", "configurations": "asked with --autotune all only"}
_ARGUMENTS = {"final_state": "output_final_state", "packed": "cu_seqlens", "groups": "grouped heads"}


def check(plan: Plan, listener: Listener, shared: Shared | None = None) -> tuple[TargetResult, ...]:
    """Check a target: every decorated function of it, or the one named.

    Raises:
        UsageError: the plan cannot be understood.
        CannotCheckError: the target cannot be imported, or the device is not there.
    """
    shared = shared or Shared()
    spec = parse(plan.target)
    results = []
    with one_thread(), open_runner(plan, spec) as runner:
        for function, claim in asked(plan, runner):
            results.append(Check(plan, spec, runner, function, claim, listener, shared).run())
    return tuple(results)


def replay(plan: Plan, case: Case, listener: Listener) -> tuple[TargetResult, ...]:
    """Ask one case again, under every property whose space it lies in (or those the plan names)."""
    shared = Shared()
    spec = parse(plan.target)
    results = []
    with one_thread(), open_runner(plan, spec) as runner:
        for function, claim in asked(plan, runner):
            results.append(Check(plan, spec, runner, function, claim, listener, shared).run(only=case))
    return tuple(results)


@contextmanager
def one_thread() -> Iterator[None]:
    """Judge on one thread: cases are small, and threads that wait for each other cost more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_runner(plan: Plan, spec: TargetSpec) -> Runner:
    """Return the runner of a target; nothing is started yet.

    Raises:
        CannotCheckError: the plan's device is not there.
    """
    if plan.device.startswith("cuda") and not torch.cuda.is_available():
        raise CannotCheckError(
            f"no device {plan.device!r}: torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return Runner(spec, device=plan.device, autotune=plan.pinning, threads=max(1, len(os.sched_getaffinity(0)) // 2))


def asked(plan: Plan, runner: Runner) -> list[tuple[FunctionInfo, Claim]]:
    """Return the functions to check, each with what it is held to.

    Raises:
        UsageError: the target declares nothing, and the plan names no operator.
        CannotCheckError: the target cannot be imported.
    """
    functions = runner.describe().functions
    if plan.operator is not None:
        own = [
            (f, next((c for c in f.claims if registry.operator(c.operator).name == plan.operator), None))
            for f in functions
        ]
        return [(f, c or Claim(plan.operator, backend="triton" if f.uses_triton else "")) for f, c in own]
    found = [(f, c) for f in functions for c in f.claims]
    if not found:
        raise UsageError(
            f"{plan.target} does not say which operator it computes; pass --op, or decorate it with @linverify.kernel"
        )
    return found


class Check:
    """One function of a target."""

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
        self.claims = {**claim.claims, **plan.claims}
        stated = with_parameters(registry.operator(claim.operator), plan.operator_parameters)
        self.operator = as_claimed(stated, self.claims)
        self.binding: Binding = bind(
            self.operator, function, settings={**claim.settings, **plan.settings}, claims=self.claims
        )
        runner.bind(self.binding, self.operator)
        self.profile = profile(plan.profile)
        self.triton = function.uses_triton or claim.backend == "triton"
        self.backend = "triton" if self.triton else claim.backend
        judge, answers = shared.of(self.operator, plan.device, plan.operator_parameters)
        self.before = dict(judge.seconds)
        self.bench = Bench(runner, self.operator, judge, plan.device, self.claims, answers)
        self.bench.declaration = declared(self.claims.get("recipe"))
        self.bench.compiles = plan.device.startswith("cuda")
        axes = {i.name: "".join(i.axes) for i in self.operator.inputs}
        self.subject = Subject(spec, self.binding, axes, plan.device, plan.pinning)
        if plan.autotune == "all" and self.triton:
            self.bench.configure = self._configured
        if plan.sanitizer:
            self.bench.sanitizer = sanitizer.ready(self.subject)
        self.start = perf_counter()
        self.notes = list(self.binding.notes)
        self.refusals: dict[str, Refusal] = {}
        self.cases: set[str] = set()
        self.name = f"{plan.target}::{function.name}" if spec.function is None and spec.kind == "file" else plan.target
        self.file, self.line, self.compile_seconds = function.file, function.line, 0.0

    def run(self, only: Case | None = None) -> TargetResult:
        """Check the function against its properties, or ask a single case."""
        dtypes = self.dtypes()
        laws = [registry.property_named(n) for n in self.plan.properties] or [
            law for law in registry.properties().values() if self.plan.sanitizer or "sanitizer" not in law.needs
        ]
        self.listener.target_started(self.name, self.operator.name, [law.name for law in laws])
        known = {p.name: p for p in self.plan.known.get(self.name, ())}
        inquiries: list[tuple[Property, Inquiry | PropertyResult]] = [
            (law, known.get(law.name) or self.inquiry(law, dtypes, only)) for law in laws
        ]
        if taken := [law.name for law in laws if law.name in known]:
            self.notes.append(f"{len(taken)} of {len(laws)} properties were judged by the run that this one resumes")
        if only is None:
            self._compile([i for _, i in inquiries if isinstance(i, Inquiry)])
        results: list[PropertyResult] = []
        gradients, broken = True, False
        try:
            for law, inquiry in inquiries:
                self.listener.property_started(law.name)
                result = inquiry
                if isinstance(inquiry, Inquiry):
                    if not gradients and "gradients" in law.needs:
                        result = PropertyResult(
                            law.name, Status.NOT_OFFERED, self._required(law), note="o carries no gradient"
                        )
                    elif self._expired() or (broken and self.plan.fail_fast):
                        why = "time ran out before it was asked" if self._expired() else "the first violation ended it"
                        result = PropertyResult(law.name, Status.UNCHECKED, self._required(law), note=why)
                    else:
                        if broken:
                            inquiry.shrink_seconds /= _LATER
                        result = inquiry.run()
                        gradients = gradients and not (result.status is Status.NOT_OFFERED and "gradients" in law.needs)
                assert isinstance(result, PropertyResult)
                results.append(result)
                broken = broken or (result.required and result.status is Status.VIOLATION)
                self.listener.property_finished(result)
            insight = self._insight(dtypes, only)
        finally:
            self.bench.close()
        target = replace(self._result(results), insight=insight)
        self.listener.target_finished(target)
        return target

    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that can be checked here."""
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

    def _insight(self, dtypes: tuple[str, ...], only: Case | None) -> Insight:
        if self.plan.fail_fast:
            return Insight()
        interpreted = self.triton and not self.plan.device.startswith("cuda")
        short = interpreted or only is not None or bool(self.plan.properties)
        return gather(self.bench, dtypes, self.binding.capabilities, self.profile, self._expired, short=short)

    def _left_out(self, law: Property, only: Case | None) -> tuple[Status, str] | None:
        """Why a property is not asked at all."""
        if not law.applies(self.operator):
            return Status.NOT_APPLICABLE, f"says nothing about {self.operator.name}"
        on_request = {"sanitizer": self.plan.sanitizer, "configurations": self.plan.autotune == "all" and self.triton}
        missing = sorted(law.needs - self.binding.capabilities - {name for name, holds in on_request.items() if holds})
        if set(missing) & set(on_request):
            return Status.NOT_OFFERED, next(_ON_REQUEST[m] for m in missing if m in on_request)
        if missing:
            return Status.NOT_OFFERED, f"the function takes no {', no '.join(_ARGUMENTS.get(m, m) for m in missing)}"
        if law.name in self.operator_exclusions():
            return Status.NOT_APPLICABLE, "this is the form it would be compared with"
        why = outside(only, law.space, self.operator) if only is not None and not self.plan.properties else ""
        return (Status.NOT_APPLICABLE, why) if why else None

    def inquiry(self, law: Property, dtypes: tuple[str, ...], only: Case | None) -> Inquiry | PropertyResult:
        """What a property asks the function, or why it asks nothing."""
        required = self._required(law)
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
            drawn = (_just(only),)
        if law.name == "form_equivalence" and self.bench.twin is None:
            self.bench.twin = start_twin(self.operator, self.claim.form, self.plan.device)
        if law.name == "plain_process" and self.bench.bystander is None:
            self.bench.bystander = Bystander(self.subject)
        return Inquiry(
            bench=self.bench,
            law=law,
            required=required,
            strata=drawn,
            seed=self.plan.seed,
            shrink_seconds=0.0 if only is not None or self.plan.fail_fast else self.profile.shrink_seconds,
            explain=not self.plan.fail_fast,
            climb_seconds=self.profile.climb_seconds if only is None and law.climbs else 0.0,
            expired=self._expired,
            judged=lambda case_id, share: self._judged(law.name, case_id, share),
            refusals=self.refusals,
            reproduce=lambda outcome: self._reproduce(law.name, outcome),
        )

    def _configured(self, number: int) -> Runner:
        return self._another(f"pin:{number}")

    def _another(self, autotune: str) -> Runner:
        runner = Runner(self.spec, device=self.plan.device, autotune=autotune)
        runner.describe()
        runner.bind(self.binding, self.operator)
        return runner

    def operator_exclusions(self) -> tuple[str, ...]:
        """Properties that would compare the target with itself."""
        return ("form_equivalence",) if twin_text(self.operator, self.claim.form) in ("", self.plan.target) else ()

    def _judged(self, law: str, case_id: str, share: float | None) -> None:
        self.cases.add(case_id)
        self.listener.case_judged(law, case_id, share)

    def _reproduce(self, law: str, outcome: Outcome) -> str:
        if (
            self.plan.reproducers is None
            or outcome.trial is None
            or outcome.failure is None
            or outcome.trial.asked.call is None
            or outcome.trial.asked.call.layout.startswith("distant")  # no script carries gigabytes; the case replays
        ):
            return ""
        trial = outcome.trial
        assert trial.asked.call is not None
        try:
            expected = trial.reference(trial.asked.call.problem)
            path = reproducer.write(
                self.plan.reproducers,
                self.spec,
                self.binding,
                self.operator,
                trial.case,
                trial.problem,
                trial.asked.call,
                trial.asked.result,
                expected,
                outcome.failure,
                device=self.plan.device,
                autotune=self.plan.pinning,
                law=law,
            )
        except OSError as error:
            self.listener.note(f"no reproducer was written: {error}")
            return ""
        return str(path)

    def _compile(self, inquiries: Sequence[Inquiry]) -> None:
        """Compile what the cases will need, on a GPU with a Triton target."""
        start = perf_counter()
        if self.triton and self.bench.compiles:
            known = Compiled(
                f"{self.plan.target}|{self.plan.autotune}|{sorted(self.binding.settings.items())!r}", self.file
            )
            asked = [(i.law, case) for i in inquiries for _, cases in i.cases() for case in cases]
            wanted = signatures(asked, self.operator, known)
            if wanted:
                self.listener.note(f"compiling {len(wanted)} signatures beforehand")

            def start_runner() -> Runner:
                return self._another(self.plan.pinning)

            compile_ahead(wanted, start_runner, known)
        self.compile_seconds = perf_counter() - start

    def _result(self, results: Sequence[PropertyResult]) -> TargetResult:
        verdict, reason = conclude(results)
        judge = self.bench.judge
        seconds = {
            "import": self.runner.describe().import_seconds,
            "compile": self.compile_seconds,
            "target": self.bench.seconds["target"],
            **{k: judge.seconds[k] - self.before.get(k, 0.0) for k in judge.seconds},
            "total": perf_counter() - self.start,
        }
        self.notes += notes(self.bench, self.plan.dtypes)
        return TargetResult(
            target=self.name,
            operator=self.operator.name,
            form=self.claim.form,
            backend=self.backend,
            verdict=verdict,
            reason=reason,
            properties=tuple(results),
            budget=tuple(
                BudgetUse(result, dtype, cases, worst, precision)
                for (result, dtype), (cases, worst, precision) in self.bench.usage.items()
            ),
            refusals=tuple(self.refusals.values()),
            notes=tuple(dict.fromkeys(self.notes)),
            cases=len(self.cases),
            seconds=seconds,
            file=from_here(self.file),
            line=self.line,
        )


def _just(case: Case) -> Stratum:
    from hypothesis import strategies as st

    return Stratum("replay", st.just(case), 1)
