"""A trial: one case of one property on one target; asks the target, asks the judge, and raises what it finds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from linverify import long_trial
from linverify.bench import Bench
from linverify.case import Case
from linverify.diagnosis import diagnose
from linverify.draw import call_layouts, labelled_generator
from linverify.dtype import FORMATS
from linverify.lazy import Lazy
from linverify.location import evidence, locate, spans
from linverify.operator import Operator
from linverify.problem import Breach, Call, Fault, Problem, Program, Refused, Result
from linverify.score import Answer, Score
from linverify.statistics import Axes
from linverify.sweep import Answer as Answering
from linverify.verdict import Evidence, Location, Status

# Breaches that leave nothing to judge; the others are the business of properties of their own.
_FATAL = ("wrong_type", "wrong_length", "wrong_shape", "wrong_device", "missing_gradient")


class Violation(Exception):
    """The law is broken on this case."""

    def __init__(
        self,
        found: Evidence,
        where: Location | None = None,
        diagnosis: str = "",
        wrong: tuple[str, ...] = (),
        right: tuple[str, ...] = (),
    ) -> None:
        super().__init__(diagnosis or found.message)
        self.evidence = found
        self.location = where or Location()
        self.diagnosis = diagnosis or found.message
        self.wrong, self.right = wrong, right


def _on_cpu(found: Mapping[str, Tensor], name: str) -> Tensor:
    return found[name].cpu()


class NotOffered(Exception):
    """The target does not offer what the property asks for."""


class OutOfTime(Exception):
    """The session's time ended in the middle of a case."""


@dataclass(slots=True, eq=False)
class Asked:
    """The last question put to the target, for the reproducer."""

    call: Call | None = None
    result: Result | None = None


@dataclass(eq=False)
class CaseTrial:
    """See `linverify.property.Trial`, which this implements."""

    case: Case
    bench: Bench
    problem: Problem
    worst: float = 0.0
    judged: bool = False
    marginal: Violation | None = None
    asked: Asked = field(default_factory=Asked)
    shares: dict[str, float] = field(default_factory=dict)
    own: dict[str, float] = field(default_factory=dict)

    @property
    def operator(self) -> Operator:
        """The statement that the target is held to."""
        return self.bench.operator

    @property
    def unit_roundoff(self) -> float:
        """Of the precision class that judges the case."""
        return FORMATS[self.bench.precision(self.case)].unit_roundoff

    def solve(
        self,
        problem: Problem | None = None,
        *,
        layout: str | None = None,
        cotangent_layout: str | None = None,
        poison: str = "nan",
    ) -> Result:
        """Ask the target one problem, by default the case's own in the case's own layouts."""
        inputs, cotangents = call_layouts(self.case)
        own = problem is None or problem is self.problem
        call = Call(
            problem or self.problem,
            layout or (inputs if own else "contiguous"),
            cotangent_layout or (cotangents if own else "contiguous"),
            poison,
        )
        key = (self.case.id, call.layout, call.cotangent_layout, poison) if own else None
        self.asked.call, self.asked.result = call, None
        result = self._whole(self.bench.solve(call, key), call.problem)
        self.asked.result = result
        return result

    def other_form(self, problem: Problem) -> Result:
        """Ask a built-in form of the operator, run in a process of its own."""
        return self._whole(self.bench.other_form(problem), problem)

    def unwatched(self) -> Result:
        """Ask the target the case's own problem in a process that holds nothing of the checker."""
        self.asked.call, self.asked.result = Call(self.problem), None
        self.asked.result = self._whole(self.bench.unwatched(self.problem), self.problem)
        return self.asked.result

    def recompiled(self, problems: Sequence[Problem]) -> list[Result]:
        """Ask each problem in a process of its own; the first finds nothing compiled."""
        return [self._whole(r, p) for r, p in zip(self.bench.recompiled(problems), problems, strict=True)]

    def fresh(self) -> bool:
        """Have the next call run in a process that has run nothing; False where a new process is too dear (a GPU)."""
        if not self.bench.compiles:
            self.bench.runner.restart()
        return not self.bench.compiles

    def sweep(self) -> None:
        """Force every configuration of every autotuned kernel; raise where one gives wrong results, naming all that do."""
        wrong_values: list[Violation] = []
        problem = self.problem
        if self.bench.lanes is not None:
            self.bench.lanes.open()
        pinned = self.solve()
        if not pinned.offers_gradients:
            problem = problem.with_(cotangents={}, wrt=())

        def judged(answer: Answering) -> tuple[Status, str]:
            if isinstance(answer, Fault):
                return Status.VIOLATION, f"the target: {answer.kind}, {answer.message}"
            if isinstance(answer, Refused):
                return Status.REFUSED, f"{answer.kind}: {answer.message}"
            self.asked.call, self.asked.result = Call(problem), answer
            try:
                self.agree(self._whole(answer, problem), problem)
            except Violation as found:
                wrong_values.append(found)
                return Status.VIOLATION, found.diagnosis
            doubt = self._doubt()
            return (Status.PASS, "") if doubt is None else (Status.MARGINAL, doubt.diagnosis)

        complete = self.bench.sweep(problem, self.case.id, pinned, judged)
        self.asked.call = None  # a script would run the first configuration, which may be right
        mine = [c for c in self.bench.configurations if c.case_id == self.case.id]
        if not mine:
            raise NotOffered("the target launches no autotuned kernel")
        wrong = [c for c in mine if c.status is Status.VIOLATION]
        if wrong:
            names = "; ".join(f"{c.kernel} {{{c.configuration}}}: {c.note}" for c in wrong[:4])
            said = f"{len(wrong)} of {len(mine)} configurations are wrong: {names}" + ("; ..." if wrong[4:] else "")
            seen = wrong_values[0] if wrong_values else Violation(Evidence(kind="wrong_value", message=said))
            raise Violation(seen.evidence, seen.location, said, seen.wrong, seen.right)
        if not complete:
            raise OutOfTime(f"time ran out after {len(mine)} configurations; --resume goes on from there")

    def _doubt(self) -> Violation | None:
        """What was marginal since it was last asked."""
        found, self.marginal = self.marginal, None
        return found

    def sanitized(self, tool: str) -> tuple[str, ...]:
        """Run the case's own problem under a tool of NVIDIA's compute-sanitizer; a sentence for each finding."""
        self.asked.call, self.asked.result = Call(self.problem), None
        return self.bench.sanitized(self.problem, tool)

    def run(self, program: Program) -> tuple[Result, ...]:
        """Run several calls in one process, in order."""
        self.asked.call, self.asked.result = program.calls[-1], None
        found = self.bench.run(program)
        asked = [c.problem for c in program.calls] + [program.calls[0].problem] * (len(found) - len(program.calls))
        results = tuple(self._whole(r, p) for r, p in zip(found, asked, strict=True))
        self.asked.result = results[-1]
        return results

    def _whole(self, result: Result, problem: Problem) -> Result:
        """Fill in zeros for gradients that are not there where the equations give exactly zero: nothing is missing then."""
        missing = [n for n in problem.wrt if n not in result.grads] if problem.cotangents else []
        if not missing or result.o is None:
            return result
        reference = self._answer(problem).reference
        given = {**problem.tensors, "initial_state": problem.initial_state}
        zero = {n: torch.zeros_like(x) for n in missing if (x := given[n]) is not None and not reference[f"d{n}"].any()}
        if len(zero) < len(missing):
            return replace(result, grads={**result.grads, **zero})
        kept = tuple(b for b in result.breaches if b.kind != "missing_gradient")
        return replace(result, grads={**result.grads, **zero}, breaches=kept, offers_gradients=True)

    def reference(self, problem: Problem) -> Mapping[str, Tensor]:
        """Float64 results by name, on the CPU."""
        return {n: t.cpu() for n, t in self._answer(problem).reference.items()}

    def agree(
        self, result: Result, problem: Problem | None = None, *, results: Sequence[str] | None = None, means: str = ""
    ) -> None:
        """Raise unless the results are within the budget of the reference."""
        self._usable(result, problem or self.problem, results)
        answer = self._answer(problem or self.problem)
        found = result.named()
        worst: tuple[Score, str] | None = None
        right: list[str] = []
        wrong: list[str] = []
        asked = {n: found[n] for n in results or [n for n in answer.reference if n in found]}
        for name, score in self._scored(answer, asked):
            self._note(score)
            self.shares[name] = max(score.share, self.shares.get(name, 0.0))
            if answer.problem is self.problem:
                self.own[name] = max(score.share, self.own.get(name, 0.0))
            (right if score.outcome == "pass" else wrong).append(name)
            # state and gradients inherit an error of o; the largest share is the one to show
            if score.outcome != "pass" and (worst is None or score.share > worst[0].share):
                worst = score, name
        if worst is not None:
            score, name = worst
            axes = self.bench.judge.axes(name)
            got = found[name].to(score.error.device)
            where = locate(score, axes, self.case.H)
            if self._poisoned():  # whose own place is left out, which says nothing about heads
                where = replace(where, heads="")
            diagnosis = diagnose(
                score,
                name,
                self.case,
                self.operator,
                where,
                got,
                timed="T" in axes.letters,
                precision=self.bench.precision(self.case),
            )
            if self._poisoned() and not bool(torch.isfinite(got).all()):
                diagnosis = (
                    f"a NaN or infinity put in elsewhere reaches {name}: a masked term is multiplied by 0, not left out"
                )
            diagnosis = means or diagnosis
            self._settle(
                score, Violation(evidence(score, name, axes, got), where, diagnosis, tuple(wrong), tuple(right))
            )

    def agree_in_segments(self) -> None:
        """Ask the case's own problem, too long to be judged whole, and raise unless its results are within the budget."""
        self.asked.call, self.asked.result = None, None  # no script carries gigabytes; the case replays
        result = long_trial.asked(self)
        self._usable(result, self.problem, None)
        peaks, found = long_trial.judged(self, result)
        for name, peak in peaks.items():
            self._note(peak.score)
            self.shares[name] = peak.score.share
        if found is not None:
            violation, decides = found
            if decides:
                raise violation
            self.marginal = violation

    def relate(
        self,
        what: str,
        parts: Sequence[tuple[Problem, Result]],
        residual: Callable[[Sequence[Mapping[str, Tensor]]], Tensor],
        axes: str,
    ) -> None:
        """Raise unless a linear relation between results holds within the propagated budget."""
        for problem, result in parts:
            self._usable(result, problem, None)

        def on_cpu(found: Sequence[Mapping[str, Tensor]]) -> Tensor:
            # properties build their coefficients from CPU inputs
            return residual([Lazy(f, partial(_on_cpu, f)) for f in found])

        score = self.bench.judge.relation(
            [(self._answer(p), r.named()) for p, r in parts],
            on_cpu,
            axes,
            self.bench.precision(self.case),
            self.bench.recipe(self.case),
        )
        self._note(score)
        if score.outcome != "pass":
            ax = Axes(axes.upper())
            shaped = residual([{n: t.double() for n, t in r.named().items()} for _, r in parts])
            where = locate(score, ax, self.case.H)
            found = evidence(score, what, ax, shaped)
            self._settle(
                score,
                Violation(
                    found, where, f"{what}: the two sides differ at {where.times or where.heads or 'all positions'}"
                ),
            )

    def identical(self, what: str, first: Tensor, second: Tensor, axes: str) -> None:
        """Raise unless the second tensor equals the first, which is expected, bit by bit; NaN equals NaN."""
        a, b = first.cpu(), second.cpu()
        if a.shape != b.shape or a.dtype != b.dtype:
            got = f"{tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}"
            raise Violation(
                Evidence(
                    kind="wrong_shape", result=what, message=f"{what}: expected equal shapes and dtypes, got {got}"
                )
            )
        differ = ~((a == b) | (a.isnan() & b.isnan()))
        if not bool(differ.any()):
            return
        gap = (a.double() - b.double()).abs().nan_to_num(nan=torch.inf)
        index = torch.unravel_index(gap.masked_fill(~differ, -1).argmax(), gap.shape)
        at = tuple(int(i) for i in index)
        where = ", ".join(f"{letter}={i}" for letter, i in zip(axes, at, strict=False))
        times = sorted({int(i) for i in differ.nonzero()[:, axes.index("t")]}) if "t" in axes else []
        raise Violation(
            Evidence(
                kind="not_bitwise",
                result=what,
                how_many=int(differ.sum()),
                of=differ.numel(),
                how_far=float(gap[at]),
                where=where,
                expected=float(a[at]),
                got=float(b[at]),
                message=f"{what}: {int(differ.sum())} of {differ.numel()} elements differ",
            ),
            Location(first_bad_t=times[0] if times else None, times=f"t {spans(times)}" if times else ""),
            f"{what}: expected equal bits, but {int(differ.sum())} of {differ.numel()} elements differ"
            + (f", at t {spans(times)}" if times else ""),
        )

    def require(self, holds: bool, kind: str, message: str, result: str = "") -> None:
        """Raise a violation of this kind unless `holds`."""
        if not holds:
            raise Violation(Evidence(kind=kind, result=result, message=message), diagnosis=message)

    def generator(self, label: str) -> torch.Generator:
        """A CPU generator that depends on the case's seed and the label alone."""
        return labelled_generator(self.case, label)

    def _answer(self, problem: Problem) -> Answer:
        return self.bench.answer(problem, self.case.id if problem is self.problem else None)

    def _scored(self, answer: Answer, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Score]]:
        """Score results; a float64 target that is only right to float32 is told so and judged by that."""
        precision = self.bench.precision(self.case)
        left = dict(values)
        for name, score in self.bench.judge.scores(answer, values, precision, self.bench.recipe(self.case)):
            if score.outcome == "reject" and self.bench.certified(answer, name, score):
                yield from self._scored(answer, left)  # by another reference
                return
            value = left.pop(name)
            if precision != "fp64" or score.outcome == "pass":
                yield name, score
                continue
            single = self.bench.judge.score(answer, name, value.float(), "fp32")
            self.bench.single = single.outcome == "pass"
            yield name, single if self.bench.single else score

    def _poisoned(self) -> bool:
        """Whether the last call had a NaN or infinity among its inputs (gates of -inf are a regime of their own)."""
        call = self.asked.call
        given = [] if call is None or self.case.gate == "inf" else list(call.problem.tensors.values())
        return any(not bool(torch.isfinite(t).all()) for t in given)

    def _usable(self, result: Result, problem: Problem, results: Sequence[str] | None) -> None:
        if not result.offers_gradients and problem.cotangents:
            raise NotOffered("o carries no gradient although its inputs required one")
        found = result.named()
        expected = {
            "o",
            *(("state",) if problem.final_state else ()),
            *(f"d{n}" for n in problem.wrt if problem.cotangents),
        }
        broken: Breach | None = next((b for b in result.breaches if b.kind in _FATAL), None)
        missing = sorted((set(results) if results else expected) - set(found))
        if broken is not None or missing:
            message = broken.message if broken else f"expected {', '.join(missing)}, which did not come back"
            raise Violation(
                Evidence(kind=broken.kind if broken else "wrong_length", message=message), diagnosis=message
            )

    def _note(self, score: Score) -> None:
        self.worst, self.judged = max(self.worst, score.share), True

    def _settle(self, score: Score, violation: Violation) -> None:
        if score.outcome == "reject":
            raise violation
        self.marginal = violation
