"""The judge: results of a target against the reference, within the budget of their precision class.

A cheap screen comes first: an error that fits the output's own rounding needs no realisations, since the budget is never
smaller than that. Otherwise realisations of correct kernels set the scale; a ratio near the line is decided on fresh ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from linverify import budget
from linverify.dtype import FP32, FP64, Format, format_of, round_to
from linverify.ensemble import GATE_KINDS, Member, realise
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.recipe import family
from linverify.reference.chunkwise import chunkwise
from linverify.reference.question import Question, pose
from linverify.statistics import Axes, ratio, statistics, thresholds

# Fresh realisations for a float64 kernel would need a wider carrier; to first order errors scale with the unit roundoff.
_TO_FP64 = FP64.unit_roundoff / FP32.unit_roundoff


class Unjudgeable(Exception):
    """No realisation of a correct kernel stays finite on this case: its format cannot hold the intermediate values."""


@dataclass(eq=False, slots=True)
class Answer:
    """A problem with its reference, and the realisations drawn for it so far."""

    problem: Problem
    question: Question
    reference: dict[str, Tensor]
    members: dict[tuple[str, int], list[Member]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """How one tensor stands.

    Attributes:
        outcome: pass, reject or marginal.
        share: of the budget; the line is at 1.
        statistic: which one decided.
        error, sigma, ref: [heads, rows, columns], for the evidence.
        allowed: largest |error| / sigma that a single element may have.
        screened: True where the screen settled it.
    """

    outcome: str
    share: float
    statistic: str
    error: Tensor
    sigma: Tensor
    ref: Tensor
    allowed: float
    screened: bool = False


class Judge:
    """Answers problems and scores results; one per operator and device. Not for concurrent use."""

    def __init__(self, operator: Operator, device: str) -> None:
        self.operator = operator
        self.device = torch.device(device)
        self.seconds = {"reference": 0.0, "judge": 0.0}
        self.counts = {"screened": 0, "realised": 0}

    def answer(self, problem: Problem) -> Answer:
        """Compute the reference of a problem."""
        start = perf_counter()
        question = pose(problem, self.operator, self.device)
        found = Answer(problem, question, chunkwise(problem, self.operator, device=self.device))
        self._sync()
        self.seconds["reference"] += perf_counter() - start
        return found

    def axes(self, result: str) -> Axes:
        """Axis letters of a result."""
        if result in ("o", "state", "dinitial_state"):
            return Axes("BTHV" if result == "o" else "NHKV")
        return Axes("".join(self.operator.input(result[1:]).axes))

    def score(self, answer: Answer, result: str, value: Tensor, precision: str) -> Score:
        """Judge one result tensor.

        Raises:
            Unjudgeable: no realisation of a correct kernel is finite.
        """
        start = perf_counter()
        try:
            return self._score(answer, result, value, precision)
        finally:
            self._sync()
            self.seconds["judge"] += perf_counter() - start

    def _score(self, answer: Answer, result: str, value: Tensor, precision: str) -> Score:
        axes, fmt, ref = self.axes(result), format_of(value.dtype), answer.reference[result]
        bias = budget.bias_for(precision, value.shape[1] if result == "o" else answer.question.folding.longest)
        error = value.to(self.device, torch.float64) - ref
        error = torch.where(ref.abs() > fmt.largest, 0.0, error)  # overflow is the right answer there
        e, r = axes.view(error), axes.view(ref)
        floor = (budget.output_variance(r, fmt) + (bias * r).square()).sqrt()
        shape = (r.shape[0], r.shape[1], r.shape[2])
        chance = thresholds(shape, {})
        share, statistic = ratio(statistics(e, floor, r, bias), chance)
        if share <= 1.0 or not bool(torch.isfinite(e).all()):
            self.counts["screened"] += 1
            outcome = "pass" if share <= 1.0 else "reject"
            return Score(outcome, share / budget.LINE, statistic, e, floor, r, budget.LINE * chance["maximum"], screened=True)
        self.counts["realised"] += 1

        def once(seed: int) -> tuple[float, str, Tensor, float]:
            members = [m for m in self._members(answer, precision, seed) if result in m.train and _finite(m, result)]
            if not members:
                raise Unjudgeable(result)
            s = budget.scale(members, lambda errors: errors[result], ref, axes, fmt, bias=bias)
            allowed = thresholds(shape, s.null)
            worst, which = ratio(statistics(e, s.sigma, r, bias), allowed)
            return worst, which, s.sigma, allowed["maximum"]

        return _settle(once, e, r)

    def relation(
        self,
        parts: Sequence[tuple[Answer, Mapping[str, Tensor]]],
        residual: Callable[[Sequence[Mapping[str, Tensor]]], Tensor],
        letters: str,
        precision: str,
    ) -> Score:
        """Judge a linear relation between results of several problems, its budget propagated realisation by realisation.

        Raises:
            Unjudgeable: no realisation of a correct kernel is finite.
            ValueError: the relation does not hold between the references: the property is wrong, not the kernel.
        """
        start = perf_counter()
        errors = [{n: v.to(self.device, torch.float64) - a.reference[n] for n, v in values.items()} for a, values in parts]
        formats = [{n: format_of(v.dtype) for n, v in values.items()} for _, values in parts]
        axes = Axes(letters.upper())
        e = axes.view(residual(errors))
        offset = axes.view(residual([a.reference for a, _ in parts]))
        zero = torch.zeros_like(e)
        shape = (e.shape[0], e.shape[1], e.shape[2])

        def once(seed: int) -> tuple[float, str, Tensor, float]:
            lists = [self._complete(a, precision, seed, f) for (a, _), f in zip(parts, formats, strict=True)]
            count = max(len(x) for x in lists)
            samples = [[residual([x[i % len(x)][j] for x in lists]) for j in range(4)] for i in range(count)]
            members = [
                Member("", {"": torch.stack(s[:2])}, {"": s[2][None]}, {"": s[3][None]}) for s in samples if all(bool(torch.isfinite(y).all()) for y in s)
            ]
            if not members:
                raise Unjudgeable("relation")
            s = budget.scale(members, lambda errors: errors[""], zero_like(residual, errors), axes, None, bias=0.0)
            if bool((offset.abs() > budget.CERTIFICATE * s.sigma.amax()).any()):
                raise ValueError(f"the relation does not hold between the references: off by {float(offset.abs().max()):.3g}")
            allowed = thresholds(shape, s.null)
            worst, which = ratio(statistics(e, s.sigma, zero, 0.0), allowed)
            return worst, which, s.sigma, allowed["maximum"]

        found = _settle(once, e, zero) if bool(torch.isfinite(e).all()) else Score("reject", float("inf"), "maximum", e, zero + 1, zero, 0.0)
        self.seconds["judge"] += perf_counter() - start
        return found

    def _members(self, answer: Answer, precision: str, seed: int) -> list[Member]:
        key = (precision, seed)
        if key not in answer.members:
            gates = tuple(i.name for i in self.operator.of_kind(*GATE_KINDS) if i.name in answer.problem.wrt)  # type: ignore[arg-type]
            rows = answer.question.rows
            scalar = rows.log_decay is not None and rows.log_decay.shape[-1] == 1
            generator = torch.Generator(device=self.device).manual_seed(seed)
            found = []
            done: set[tuple[object, ...]] = set()
            for stack in family(precision, scalar_gate=scalar):
                shape = budget.structure(stack, answer.question.folding.longest)
                if shape not in done:  # short rows make one chunk of either size
                    done.add(shape)
                    found += realise(answer.question, stack, answer.reference, gates, generator)
            answer.members[key] = [_scaled(m, _TO_FP64) for m in found] if precision == "fp64" else found
        return answer.members[key]

    def _complete(self, answer: Answer, precision: str, seed: int, formats: Mapping[str, Format]) -> list[list[dict[str, Tensor]]]:
        """Realisations with every result in them, rounded to the result formats: [member][sample] -> errors by result."""
        out: list[list[dict[str, Tensor]]] = []
        direct: dict[str, Member] = {}
        for m in self._members(answer, precision, seed):
            name = m.name.split(",")[0]
            direct.setdefault(name, m)
            whole = []
            for pick in (lambda x: x.train, lambda x: x.held, lambda x: x.nearest):
                merged = {**pick(direct[name]), **pick(m)}
                for j in range(next(iter(merged.values())).shape[0]):
                    whole.append({n: round_to(answer.reference[n] + merged[n][j], f) - answer.reference[n] for n, f in formats.items()})
            out.append(whole)
        return out

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def zero_like(residual: Callable[[Sequence[Mapping[str, Tensor]]], Tensor], errors: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """A zero of the relation's natural shape."""
    return torch.zeros_like(residual(errors))


def _finite(member: Member, result: str) -> bool:
    return all(bool(torch.isfinite(x[result]).all()) for x in (member.train, member.held, member.nearest))


def _scaled(member: Member, factor: float) -> Member:
    def by(errors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: e * factor for n, e in errors.items()}

    return Member(member.name, by(member.train), by(member.held), by(member.nearest))


def _settle(once: Callable[[int], tuple[float, str, Tensor, float]], e: Tensor, r: Tensor) -> Score:
    """Draw realisations, seed by seed, until they decide."""
    ratios: list[float] = []
    for seed in budget.seeds():
        worst, which, sigma, allowed = once(seed)
        ratios.append(worst)
        outcome = budget.settled(ratios)
        if outcome != "more":
            break
    middle = sorted(ratios)[len(ratios) // 2] if len(ratios) != 2 else max(ratios)
    return Score(outcome, middle / budget.LINE, which, e, sigma, r, budget.LINE * allowed)
