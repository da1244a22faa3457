"""The judge: results of a target against the reference, within the budget of their precision class.

Cheap screens come first: an error that fits the output's own rounding, or what a few passes over squared values say of the
roundings inside, needs no realisations. Otherwise realisations of correct kernels set the scale; a ratio near the line is
decided on fresh ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor

from linverify import analytic, budget
from linverify.analytic import Analysis
from linverify.analytic_filters import Sums
from linverify.certificate import certify
from linverify.dtype import FP32, FP64, Format, format_of
from linverify.emulated import emulated_members, emulates, row_length
from linverify.ensemble import Member, realise
from linverify.imagined import Realisations, Residual, Shaken, anonymous, completed, mixed
from linverify.operator import GATE_KINDS, Operator
from linverify.problem import Problem
from linverify.recipe import Recipe, Stack, family
from linverify.reference.chunkwise import answered
from linverify.reference.question import Question, pose
from linverify.reference.stated import pose_stated, stated
from linverify.reference.stepwise import stepwise
from linverify.rule import DECLARED, GENERIC, Rule
from linverify.score import Answer, Score, Unjudgeable, settle
from linverify.screening import Faced, Given, beside, faced
from linverify.statistics import HUGE, Axes, axes_of, thresholds

# Fresh realisations for a float64 kernel would need a wider carrier; to first order errors scale with the unit roundoff.
_TO_FP64 = FP64.unit_roundoff / FP32.unit_roundoff

_APART = 7919
# Elements of a problem's tensors up to which an operation takes a CPU about as long as a launch and a turn take a GPU.
_SMALL = 1 << 16
# Shares beyond this come from errors that are infinite, no number, or as good as that.
_HUGE = HUGE / 100


class Judge:
    """Answers problems and scores results; one per operator and device. Not for concurrent use.

    On a GPU small problems are judged on the CPU: their many short operations cost a launch each, and with several processes
    a wait for each other's turn at the GPU (on an H100 three times the time of one process, with six).
    """

    def __init__(self, operator: Operator, device: str) -> None:
        self.operator = operator
        self.device = torch.device(device)
        self.seconds = {"reference": 0.0, "judge": 0.0}
        self.counts = {"screened": 0, "analytic": 0, "realised": 0}

    def answer(self, problem: Problem) -> Answer:
        """Compute the reference of a problem."""
        device = self.place(problem)
        with self._clock("reference", device):
            found = self._stated if self.operator.canonical is None else self._recurrence
            return found(problem, device)

    def _stated(self, problem: Problem, device: torch.device) -> Answer:
        question = pose_stated(problem, self.operator, device)
        return Answer(problem, question, stated(problem, self.operator, device=device))

    def _recurrence(self, problem: Problem, device: torch.device) -> Answer:
        question = pose(problem, self.operator, device)
        gates = question.rows.log_decay
        # exp(-inf) is no trouble step by step; chunks would form inf - inf
        if gates is not None and bool(torch.isinf(gates).any()):
            return Answer(problem, question, stepwise(problem, self.operator, device=device))
        return Answer(problem, *answered(question))

    def place(self, problem: Problem) -> torch.device:
        """The device that a problem is judged on."""
        small = sum(t.numel() for t in problem.tensors.values()) <= _SMALL
        return torch.device("cpu") if small else self.device

    def axes(self, result: str) -> Axes:
        """Axis letters of a result."""
        if result == "o":
            return axes_of(self.operator.o_axes)
        if result in ("state", "dinitial_state"):
            return axes_of(self.operator.state_axes)
        return axes_of(self.operator.input(result[1:]).axes)

    def score(self, answer: Answer, result: str, value: Tensor, precision: str, recipe: Recipe | None = None) -> Score:
        """Judge one result tensor, by a precision class or, sharper, by the recipe that its kernel declares.

        Raises:
            Unjudgeable: no realisation of a correct kernel is finite.
        """
        return next(self.scores(answer, {result: value}, precision, recipe))[1]

    def scores(
        self, answer: Answer, values: Mapping[str, Tensor], precision: str, recipe: Recipe | None = None
    ) -> Iterator[tuple[str, Score]]:
        """Judge several results, in their order: all are screened together, the others one by one as they are asked for.

        Raises:
            Unjudgeable: no realisation of a correct kernel is finite.
        """
        with self._clock("judge", answer.device):
            found = self._screened(answer, values, precision, recipe)
        gates = self.gates(answer.problem)
        # where a gate's gradient is left, too, the same realisations serve all
        gated = any(n[1:] in gates for n, score in found.items() if isinstance(score, Faced))
        for result in values:
            score = found[result]
            if isinstance(score, Faced):
                with self._clock("judge", answer.device):
                    score = self._realised(answer, result, score, precision, recipe, gated=gated)
            yield result, score

    def rehearse(self, answer: Answer, values: Mapping[str, Tensor], precision: str) -> None:
        """Do once what judging may do: what torch loads on first use is there afterwards."""
        list(self.scores(answer, values, precision))
        if isinstance(answer.question, Question):
            self._analytic(answer, precision)
        next(self._growing(answer, precision, 0))
        wait(answer.device)

    @contextmanager
    def _clock(self, what: str, device: torch.device) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            wait(device)
            self.seconds[what] += perf_counter() - start

    def _screened(
        self, answer: Answer, values: Mapping[str, Tensor], precision: str, recipe: Recipe | None
    ) -> dict[str, Score | Faced]:
        """Scores of results that the screens settle; the others beside their reference."""
        line = (GENERIC if recipe is None else DECLARED).line
        given = {}
        for n, value in values.items():
            axes, fmt = self.axes(n), format_of(value.dtype)
            fmt = recipe.output if recipe is not None and recipe.output is not None and n != "state" else fmt
            given[n] = Given(axes.view(value.to(answer.device)), axes.view(answer.reference[n]), fmt)
        precision = precision if recipe is None else recipe.precision
        every = faced(given, budget.bias_for(precision, row_length(answer.question)))

        def settled(f: Faced, share: float, statistic: str, sigma: Tensor) -> Score:
            chance = thresholds(f.shape, {})["maximum"]
            outcome = "pass" if share <= line else "reject"
            return Score(outcome, share / line, statistic, f.error, sigma, f.ref, line * chance, screened=True)

        found: dict[str, Score | Faced] = dict(every)
        for n, f in every.items():
            # beyond this the error may be no number, which realisations excuse that run in float32 themselves
            lost = f.share > _HUGE and not emulates(self.operator) and not bool(torch.isfinite(f.error).all())
            if f.share <= 1.0 or lost:
                self.counts["screened"] += 1
                found[n] = settled(f, f.share, f.statistic, f.scale)
        left = {n: f for n, f in every.items() if isinstance(found[n], Faced)}
        known, fresh = self._analytic(answer, precision) if left and recipe is None else ({}, None)
        some = {n: f for n, f in left.items() if n in known}
        leans = {n: self._leans(answer, n, precision) for n in some}
        variances = {n: self.axes(n).view(known[n]) for n in some}

        def sums(result: str, weights: Tensor) -> Sums | None:
            nonlocal fresh
            fresh = fresh or analytic.analysis(answer.recurrence, answer.reference, precision)
            return None if fresh is None else fresh.sums(result, weights)

        for n, (share, statistic, sigma) in beside(some, variances, leans, sums, analytic.LINE).items():
            if share <= analytic.LINE:
                self.counts["analytic"] += 1
                found[n] = settled(some[n], share, statistic, sigma)
        return found

    def _realised(
        self, answer: Answer, result: str, f: Faced, precision: str, recipe: Recipe | None, *, gated: bool
    ) -> Score:
        """Score a result by realisations, those that have the gates' gradients or others."""
        rule = GENERIC if recipe is None else DECLARED
        self.counts["realised"] += 1

        def once(members: Sequence[Member]) -> tuple[float, str, Tensor, float]:
            if not any(result in m.finite for m in members):
                raise Unjudgeable(result)
            return budget.measured(f.error, f.ref, members, result, self.axes(result), f.floor, f.fmt, f.bias)

        def growing(seed: int) -> Iterator[list[Member]]:
            for members in self._growing(answer, recipe or precision, seed, gated=gated):
                yield [m.of(result) for m in members if result in m.train]

        further = budget.further(f.error.numel(), sum(r.numel() for r in answer.reference.values()))
        return settle(growing, once, f.error, f.ref, further, rule)

    def _analytic(self, answer: Answer, precision: str) -> tuple[Mapping[str, Tensor], Analysis | None]:
        """Variances by the analytic form, computed once; none for operators that are not plainly a recurrence.

        What they were made of comes with them where it is at hand; it takes too much memory to be kept.
        """
        made = None
        if precision not in answer.variances:
            served = isinstance(answer.question, Question) and not emulates(self.operator)
            made = analytic.analysis(answer.recurrence, answer.reference, precision) if served else None
            known = {} if made is None else made.variances
            answer.variances[precision] = known
            largest = torch.stack(torch._foreach_norm(list(known.values()), torch.inf)).tolist() if known else []
            answer.rounded[precision] = frozenset(n for n, x in zip(known, largest, strict=True) if x > 0)
        return answer.variances[precision], made

    def _leans(self, answer: Answer, result: str, precision: str) -> float:
        """Bias of products that truncate, of a result on the way to which something is rounded."""
        rounded = result in answer.rounded[precision]
        return analytic.truncated(answer.recurrence, result, precision) if rounded else 0.0

    def certify(self, answer: Answer, result: str, score: Score) -> bool:
        """Hold a reference to the next rungs of the ladder, once; say whether it was replaced, and scores with it.

        The yardstick is the scale of one result's score.
        """
        if answer.certificate is not None:
            return False
        axes = self.axes(result)
        scale = {result: lambda difference: axes.view(difference) / score.sigma}
        with self._clock("reference", answer.device):
            found = certify(answer.problem, self.operator, answer.reference, scale, answer.device)
        answer.certificate = found
        if found.reference is not None:
            answer.reference = dict(found.reference)
            answer.variances.clear()
            answer.ungated.clear()
            answer.members.clear()  # errors were taken against the reference that fell
        return found.reference is not None

    def relation(
        self,
        parts: Sequence[tuple[Answer, Mapping[str, Tensor]]],
        residual: Residual,
        letters: str,
        precision: str,
        recipe: Recipe | None = None,
    ) -> Score:
        """Judge a linear relation between results of several problems, its budget propagated realisation by realisation.

        Raises:
            Unjudgeable: no realisation of a correct kernel is finite.
            ValueError: the relation does not hold between the references: the property is wrong, not the kernel.
        """
        device = next((a.device for a, _ in parts if a.device.type != "cpu"), torch.device("cpu"))

        def together(found: Sequence[Mapping[str, Tensor]]) -> Tensor:
            return residual(found).to(device, torch.float64)

        with self._clock("judge", device):
            errors = [{n: self.error(v, a.reference[n]) for n, v in values.items()} for a, values in parts]
            formats = [{n: format_of(v.dtype) for n, v in values.items()} for _, values in parts]
            axes = Axes(letters.upper())
            e = axes.view(together(errors))
            offset = axes.view(together([a.reference for a, _ in parts]))
            zero = torch.zeros_like(e)
            if not emulates(self.operator) and not bool(torch.isfinite(e).all()):
                return Score("reject", float("inf"), "maximum", e, zero + 1, zero, 0.0)
            return self._related([a for a, _ in parts], formats, together, axes, recipe or precision, e, offset)

    def _related(
        self,
        answers: Sequence[Answer],
        formats: Sequence[Mapping[str, Format]],
        residual: Residual,
        axes: Axes,
        recipe: str | Recipe,
        e: Tensor,
        offset: Tensor,
    ) -> Score:
        zero = torch.zeros_like(e)
        references = [t for a in answers for t in a.reference.values()]
        rule = GENERIC if isinstance(recipe, str) else DECLARED
        lean = budget.coherence(recipe if isinstance(recipe, str) else recipe.precision)
        # a problem that appears twice is realised by another member each time: two kernels, or forms, do not round alike
        again = [sum(a is b for b in answers[:i]) for i, a in enumerate(answers)]
        shaken = Shaken([a.reference for a in answers], formats, residual, axes, lean)
        if bool((e == 0).all()):  # nothing to explain, unless the relation is wrong
            floor = shaken.variance(2)
            budget.certify(offset, floor.sqrt(), references)
            return Score("pass", 0.0, "maximum", e, floor.sqrt(), zero, 0.0, screened=True)
        floor = shaken.variance(budget.DRAWS)

        def related(lists: Sequence[Realisations]) -> list[Member]:
            count, drawn = max(len(x) for x in lists), rule.train + rule.held + 1
            # a kernel rounds forward and backward anew, so every result comes from a realisation of its own
            sides = list(zip(lists, again, strict=True))
            return [
                anonymous(
                    i, torch.stack([residual([mixed(x, i + n, j, rule) for x, n in sides]) for j in range(drawn)]), rule
                )
                for i in range(count)
            ]

        def once(members: Sequence[Member]) -> tuple[float, str, Tensor, float]:
            able = [m for m in members if m.finite]
            if not able:
                raise Unjudgeable("the relation")
            sigma, others, apart = budget.scale(able, lambda errors: errors[""], axes, floor)
            budget.certify(offset, sigma, references)
            worst, which, allowed = budget.judged(e, others, apart, sigma, zero, 0.0)
            return worst, which, sigma, allowed

        def growing(seed: int) -> Iterator[list[Member]]:
            # every call rounds anew: draws that the sides shared would cancel wherever the relation is linear in them
            calls = [self._growing(a, recipe, seed + _APART * i) for i, a in enumerate(answers)]
            for step in zip(*calls, strict=False):
                yield related(
                    [completed(a.reference, m, f, rule) for a, m, f in zip(answers, step, formats, strict=True)]
                )

        return settle(growing, once, e, zero, budget.further(e.numel(), sum(r.numel() for r in references)), rule)

    def _growing(
        self, answer: Answer, recipe: str | Recipe, seed: int, *, gated: bool = True
    ) -> Iterator[list[Member]]:
        """Members of one stack, then of two, and so on; what was drawn before is remembered.

        The gradients of gates come in several forms, so they are left out where they are not judged.
        """
        if not isinstance(answer.question, Question) or emulates(self.operator):
            precision = recipe if isinstance(recipe, str) else recipe.precision
            for found in emulated_members(answer.question, precision, answer.reference, seed, answer.members):
                yield [m.scaled(_TO_FP64) for m in found] if precision == "fp64" else found
            return
        gates = self.gates(answer.problem)
        rule, stacks = self.stacks(answer.question, recipe)
        members: list[Member] = []
        for n, stack in stacks:
            key = recipe, seed, n
            known = answer.members if gated or not gates or key in answer.members else answer.ungated
            if stack is not None and key not in known:
                generator = torch.Generator(device=answer.device).manual_seed(seed + n)
                found = realise(answer.question, stack, answer.reference, gates, generator, rule, gated=gated)
                known[key] = [m.scaled(_TO_FP64) for m in found] if recipe == "fp64" else found
            members = members if stack is None else [*members, *known[key]]
            yield members

    def gates(self, problem: Problem) -> tuple[str, ...]:
        """Inputs that set the decay and whose gradient a problem asks for."""
        return tuple(i.name for i in self.operator.of_kind(*GATE_KINDS) if i.name in problem.wrt)

    def stacks(self, question: Question, recipe: str | Recipe) -> tuple[Rule, tuple[tuple[int, Stack | None], ...]]:
        """The rule, and numbered stacks of recipes that stand for a correct kernel; None for one that says nothing new.

        Args:
            question: short rows make one chunk of either size: such stacks coincide.
            recipe: a precision class, or what the kernel declares.
        """
        if not isinstance(recipe, str):
            return DECLARED, ((0, (recipe,)),)
        rows = question.rows
        low_rank = rows.beta is not None or rows.a is not None
        longest = question.folding.longest
        known = family(recipe, gate=rows.gate, low_rank=low_rank, scale=question.scale, tokens=longest)
        shapes = [budget.structure(stack, longest) for stack in known]
        return GENERIC, tuple((n, stack if shapes.index(shapes[n]) == n else None) for n, stack in enumerate(known))

    def error(self, value: Tensor, ref: Tensor) -> Tensor:
        """Result minus reference; zero where the reference is beyond the result's format: overflow is right there."""
        return torch.where(budget.beyond(ref, format_of(value.dtype)), 0.0, value.to(ref.device).double() - ref)


def wait(device: torch.device) -> None:
    """Wait for a device, so that a clock tells what was computed there; a CPU's needs no waiting, and opens no GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
