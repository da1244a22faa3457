"""The judge of a long sequence: one segment at a time, against a reference and realisations that stream along.

What a segment may err is what any result may err: realisations of correct kernels set the scale (``linverify.budget``). The
error of the state that enters a segment is each realisation's own: it is carried from segment to segment, forward as the
state and backward as its cotangent (``linverify.carried``), so it decays, and grows, as it does in a kernel. No variance of it
is assumed. A result is judged by its worst segment.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from linverify import budget
from linverify.certificate import certify
from linverify.dtype import FP32, Format, format_of
from linverify.ensemble import Member
from linverify.judge import Judge, wait
from linverify.pieces import PIECE
from linverify.problem import Problem
from linverify.realising import Realising, carries_finely, room
from linverify.recipe import Recipe, Stack
from linverify.reference.question import Question, pose, sizes_of
from linverify.rule import Rule
from linverify.score import Score, Unjudgeable
from linverify.segments import SEGMENT, Segment, backward, cut, forward, part, timed
from linverify.statistics import ratio, statistics, thresholds


@dataclass(frozen=True, slots=True, eq=False)
class Peak:
    """One result at the segment where it uses most of its budget.

    Attributes:
        score: of that segment.
        start: its first token; 0 for a result without an axis of tokens.
        stop: one past its last.
        segment: the segment, for the certificate; None for a gradient summed over all of them.
    """

    score: Score
    start: int
    stop: int
    segment: Segment | None


class Stream:
    """One long problem, the target's results for it, and everything that streams past them."""

    def __init__(
        self,
        judge: Judge,
        problem: Problem,
        results: Mapping[str, Tensor],
        precision: str,
        recipe: Recipe | None = None,
        *,
        segment: int | None = None,
        piece: int | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            judge: of the operator, on its device.
            problem: dense; its sequences can be cut into segments.
            results: of the target, on the CPU; those that the problem asks for.
            precision: class that judges.
            recipe: what the kernel declares, or None.
            segment: tokens of a segment; as many as there is room for by default.
            piece: tokens of its pieces.
        """
        self._asked = segment, piece
        self._segment = self._piece = SEGMENT
        self._judge, self._operator, self._problem = judge, judge.operator, problem
        self._results, self._recipe = dict(results), recipe
        self._precision = precision if recipe is None else recipe.precision
        self._tokens = sizes_of(problem, judge.operator)["T"]
        self._gates = judge.gates(problem)
        self._slowest = -math.inf
        self._shared: dict[str, Tensor] = {}

    def judged(self) -> dict[str, Peak]:
        """Judge every result.

        Raises:
            Unjudgeable: no realisation of a correct kernel is finite.
        """
        start, before = perf_counter(), self._judge.seconds["reference"]
        first = pose(self._cut(0, min(SEGMENT, self._tokens)), self._operator, self._judge.device)
        rule, numbered = self._judge.stacks(first, self._recipe or self._precision)
        stacks = [s for _, s in numbered if s is not None]
        found: dict[str, Peak] = {}
        ratios: dict[str, list[float]] = {n: [] for n in self._results}
        pending = set(self._results)
        for seed in budget.seeds():
            unsettled = set(pending)
            for count in dict.fromkeys((1, len(stacks))):  # every sweep takes the whole sequence: the first, then all
                self._segment, self._piece = self._lengths(stacks[:count], rule, first, unsettled)
                found |= self._swept(stacks[:count], rule, seed, unsettled)
                passing = {n for n in unsettled if budget.settled([found[n].score.share], rule) == "pass"}
                unsettled -= passing | {n for n in unsettled if math.isinf(found[n].score.share)}
                if not unsettled:
                    break
            for n in pending:
                ratios[n].append(found[n].score.share)
            pending = {n for n in pending if _outcome(ratios[n], rule) == "more"}
            if not pending:
                break
        reference = self._judge.seconds["reference"] - before
        self._judge.seconds["judge"] += perf_counter() - start - reference
        return {n: _settled(p, ratios[n], rule) for n, p in found.items()}

    def certified(self, result: str, peak: Peak) -> float:
        """How far the reference of a rejected result is from the next rung of the ladder, in units of the budget's scale."""
        if peak.segment is None:
            return 0.0
        axes = self._judge.axes(result)
        scale = {result: lambda difference: axes.view(difference) / peak.score.sigma}
        return certify(peak.segment.problem, self._operator, peak.segment.reference, scale, self._judge.device).bound

    def _cut(self, start: int, stop: int) -> Problem:
        return cut(self._problem, self._operator, start, stop, self._problem.initial_state, backward=False)

    def _lengths(self, stacks: Sequence[Stack], rule: Rule, first: Question, names: set[str]) -> tuple[int, int]:
        """Tokens of a segment, and of its pieces.

        A processor takes one piece after the other. A GPU waits for every launch of a short operation, so it takes as many
        pieces at once as there is room for.
        """
        segment, piece = self._asked
        if self._judge.device.type != "cuda" or not all(map(carries_finely, stacks)):
            return segment or SEGMENT, piece or segment or SEGMENT
        per_token = [
            self._results[n].numel() // (self._tokens * first.folding.H) for n in names if timed(self._operator, n)
        ]
        return segment or room(stacks, rule, first, per_token, self._tokens), piece or PIECE

    def _swept(self, stacks: Sequence[Stack], rule: Rule, seed: int, names: set[str]) -> dict[str, Peak]:
        """Run all segments forward and back, and return where each result is worst; shares are ratios still."""
        device, gates = self._judge.device, tuple(g for g in self._gates if f"d{g}" in names)
        running = [Realising(s, rule, seed + n, device) for n, s in enumerate(stacks)]
        passed: list[Segment] = []
        for segment in self._clocked(forward(self._problem, self._operator, device, self._segment, self._piece)):
            passed.append(segment)
            self._notice(segment)
            for r in running:
                r.forward(segment)
        worst: dict[str, Peak] = {}
        self._shared = {}
        for segment in self._clocked(backward(self._problem, self._operator, passed, device)):
            drawn = [m for r in running for m in r.backward(segment, gates, names)]
            for name, value in self._here(segment, names):
                peak = self._held(name, value, segment.reference[name], drawn, (segment.start, segment.stop), segment)
                worst[name] = max(worst.get(name, peak), peak, key=lambda p: p.score.share)
        if common := self._common() & names:
            reference = {n: t for n, t in self._shared.items() if n in common}
            drawn = [m for r in running for m in r.shared(self._shared)]
            for name, ref in reference.items():
                worst[name] = self._held(name, self._results[name], ref, drawn, (0, self._tokens), None)
        return worst

    def _clocked(self, segments: Iterator[Segment]) -> Iterator[Segment]:
        """The same segments, their time counted as the reference's."""
        while True:
            start = perf_counter()
            found = next(segments, None)
            wait(self._judge.device)
            self._judge.seconds["reference"] += perf_counter() - start
            if found is None:
                return
            yield found

    def _notice(self, segment: Segment) -> None:
        """The slowest mean gate of a segment's rows."""
        with torch.no_grad():
            gates = pose(segment.pieces.problem, self._operator, self._judge.device).rows.log_decay
        if gates is not None:
            self._slowest = max(self._slowest, float(segment.pieces.grid.apart(gates).mean((2, 4)).max()))

    def _common(self) -> set[str]:
        """Gradients that all tokens share."""
        return {
            n for n in self._results if n.startswith("d") and n != "dinitial_state" and not timed(self._operator, n)
        }

    def _here(self, segment: Segment, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Results that are judged at this segment, each with its part of the target's tensor."""
        for name in self._common():
            part_of = segment.reference[name]
            self._shared[name] = self._shared[name] + part_of if name in self._shared else part_of
        last = (self._tokens - 1) // self._segment
        for name in names:
            end = {"state": last, "dinitial_state": 0}.get(name, segment.number)
            if name not in self._shared and end == segment.number:
                yield name, part(self._operator, name, self._results[name], segment.start, segment.stop)

    def _bias(self) -> float:
        """Coherent relative bias over as many tokens as the state remembers: what has decayed below float32 is forgotten."""
        horizon = -math.log(FP32.unit_roundoff) / -self._slowest if -math.inf < self._slowest < 0 else math.inf
        return budget.bias_for(self._precision, int(min(self._tokens, max(self._segment, horizon))))

    def _held(
        self,
        name: str,
        value: Tensor,
        ref: Tensor,
        drawn: Sequence[Member],
        tokens: tuple[int, int],
        segment: Segment | None,
    ) -> Peak:
        """Hold one result of a segment to the realisations, or to its own rounding where that is enough."""
        axes, fmt = self._judge.axes(name), self._format(name, value)
        e, r = axes.view(self._judge.error(value, ref)), axes.view(ref)
        bias = self._bias()
        floor = budget.output_variance(r, fmt, bias)
        chance = thresholds((r.shape[0], r.shape[1], r.shape[2]), {})
        share, statistic = ratio(statistics(e[None], floor.sqrt(), r, bias)[0], chance)
        sigma, allowed, screened = floor.sqrt(), chance["maximum"], True
        if not bool(torch.isfinite(e).all()):
            share = math.inf
        elif share > 1.0:
            if not any(name in m.finite for m in drawn):
                raise Unjudgeable(name)
            share, statistic, sigma, allowed = budget.measured(e, r, drawn, name, axes, floor, fmt, bias)
            screened = False
        where = tokens if timed(self._operator, name) else (0, self._tokens)
        return Peak(Score("", share, statistic, e, sigma, r, allowed, screened), *where, segment)

    def _format(self, name: str, value: Tensor) -> Format:
        declared = None if self._recipe is None or name == "state" else self._recipe.output
        return declared or format_of(value.dtype)


def _outcome(ratios: Sequence[float], rule: Rule) -> str:
    return "reject" if math.isinf(ratios[0]) else budget.settled(ratios, rule)


def _settled(peak: Peak, ratios: Sequence[float], rule: Rule) -> Peak:
    """The peak with the verdict of all seeds, its share in units of the line."""
    outcome = _outcome(ratios, rule)
    middle = sorted(ratios)[len(ratios) // 2] if len(ratios) != 2 else max(ratios)
    s = peak.score
    score = Score(outcome, middle / rule.line, s.statistic, s.error, s.sigma, s.ref, rule.line * s.allowed, s.screened)
    return Peak(score, peak.start, peak.stop, peak.segment)
