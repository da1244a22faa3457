"""Fingerprinting: which recipe leaves the least residual when its actual roundings are simulated on the target's own cases.

Real rounding is deterministic: a kernel that rounds the same values at the same places makes the same errors, up to what
float32 accumulation in another order flips. So each candidate is run once with real rounding, its error is subtracted from the
target's, and the mean logarithm of what is left of the error's energy is its score. A wrong candidate leaves about as much or
more; the right one leaves a thousandth or less. Candidates that leave the same are ties: these cases cannot tell them apart.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import process_time

import torch
from torch import Tensor

from linverify.declared import FORMATS, NATIVE, declared
from linverify.dtype import format_of, round_to
from linverify.ensemble import simulated
from linverify.insight import RecipeMatch
from linverify.operator import GATE_KINDS, Operator
from linverify.recipe import Recipe
from linverify.score import Answer

# A mean logarithm of the residual below this is a match; a rival must be worse by this much, or else it is a tie.
MATCH, GAP = -1.0, 0.1
# A kernel that computes in float32 leaves nothing to match but the size of its errors: a coarser recipe's would dwarf it.
BY_SIZE = 3.0
_FLOOR = 2.0**-43  # energies below this share of the error's are rounding of the comparison itself
_ORDERS = ("C=16", "C=32", "C=64", "C=128", "quadratic", "recurrent")
_STARTS = 3
_MIRRORED, _SEPARATE = "backward=mirrored", "backward=separate"

# base format, form, backward pass, then single points in alphabetical order
Words = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One answered case: the reference, and what the target gave."""

    answer: Answer
    results: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate.

    Attributes:
        words: what it is called.
        score: mean logarithm of the residual's share of the error's energy.
        left: mean share itself.
    """

    words: Words
    score: float
    left: float


@dataclass(eq=False)
class Search:
    """A search for the recipe behind some results of one dtype.

    Attributes:
        operator: what the target computes.
        dtype, precision: of the cases, and their class without a declaration.
        observed: cases.
        seconds: of this process's own time, which busy neighbours do not take from it; after this no new candidate is tried.
        tried: candidates by what they mean; several words may mean one recipe.
    """

    operator: Operator
    dtype: str
    precision: str
    observed: Sequence[Observed]
    seconds: float = math.inf
    tried: dict[Recipe, Tried] = field(default_factory=dict)
    _start: float = field(default_factory=process_time)

    def run(self) -> RecipeMatch:
        """Try whole recipes first, then change single points of the best ones as long as that helps."""
        for words in self._grid():
            self._try(words)
        for start in sorted(self.tried.values(), key=lambda t: t.score)[:_STARTS]:
            self._descend(start)
        return self._match()

    def _late(self) -> bool:
        return bool(self.tried) and process_time() - self._start > self.seconds

    def _grid(self) -> Iterator[Words]:
        longest = max(o.answer.recurrence.folding.longest for o in self.observed)
        # tf32 rounded to nearest and fp16 have equally many bits: only what lies beyond fp16's range could tell them apart, and
        # what a gate has decayed to below it
        alike = self.precision == "fp16" and not self._gated()
        bases = [f for f in FORMATS if f != self.precision and not (f == "tf32rn" and alike)]
        for base in (NATIVE, *bases):
            for order in _ORDERS:
                if order == "recurrent":
                    if base == ("fp32" if self.precision != "fp32" else NATIVE):
                        yield (base, order, _MIRRORED)
                elif not order.startswith("C=") or int(order[2:]) < longest + 48:
                    yield from ((base, order, b) for b in (_MIRRORED, _SEPARATE))
                    # what spoils every result: no other single point mends a recipe that has it wrong
                    if self._gated():
                        yield (base, order, _MIRRORED, "gates=native")
                    if self._low_rank():
                        yield from ((base, order, b, "u=fp32") for b in (_MIRRORED, _SEPARATE))

    def _descend(self, best: Tried) -> None:
        """Coordinate descent over single rounding points."""
        while not self._late():
            found = min((self._try(w) for w in self._changes(best.words)), key=lambda t: t.score, default=best)
            if found.score >= best.score - GAP:
                return
            best = found

    def _changes(self, words: Words) -> Iterator[Words]:
        base, order, backward, *said = words
        choices: dict[str, tuple[str, ...]] = {"carry": ("bf16", "fp16")}
        if order != "recurrent":
            choices = dict.fromkeys(self._points(), (base if base == "tf32rn" else NATIVE, "tf32", "fp32"))
            choices |= {"carry": (NATIVE,), "gates": (NATIVE,)} if self._gated() else {"carry": (NATIVE,)}
            choices |= {"sub": ("32", "64")} if self._channel() else {}
            yield (base, order, _SEPARATE if backward == _MIRRORED else _MIRRORED, *said)
            yield from ((base, o, backward, *said) for o in _ORDERS[:4] if order.startswith("C=") and o != order)
        for point, values in choices.items():
            others = [s for s in said if not s.startswith(f"{point}=")]
            if len(others) < len(said):
                yield (base, order, backward, *others)
            yield from ((base, order, backward, *sorted([*others, f"{point}={value}"])) for value in values)

    def _points(self) -> tuple[str, ...]:
        """Rounding points that mean something for this operator."""
        found = ["scores", "query", "state", "state_cotangent", "cotangents", "scaled_query"]
        if self._gated():
            found += ["key", "blocks", "backward_scores"] if self._channel() else ["value", "folded_query"]
        if self._low_rank():
            found += ["value", "key", "inverse", "w", "u", "strong_key", "partials", "key_partials"]
        return tuple(dict.fromkeys(found))

    def _low_rank(self) -> bool:
        rows = self.observed[0].answer.recurrence.rows
        return rows.beta is not None or rows.a is not None

    def _gated(self) -> bool:
        return self.observed[0].answer.recurrence.rows.log_decay is not None

    def _channel(self) -> bool:
        decay = self.observed[0].answer.recurrence.rows.log_decay
        return decay is not None and decay.shape[-1] > 1

    def _try(self, words: Words) -> Tried:
        recipe = replace(built(text(words), self.dtype, self.precision), name="")
        if recipe not in self.tried and self._late():
            return Tried(words, math.inf, 1.0)
        if recipe not in self.tried:
            shares = [s for one in self.observed for s in residuals(self.operator, one, recipe).values()]
            self.tried[recipe] = Tried(words, mean_log(shares), sum(shares) / max(1, len(shares)))
        return self.tried[recipe]

    def _match(self) -> RecipeMatch:
        ranked = sorted(self.tried.values(), key=lambda t: t.score)
        alike = [t for t in ranked if t.score <= ranked[0].score + GAP]
        best, *ties = sorted(alike, key=lambda t: (len(t.words), t.words[0] != NATIVE, t.score))
        rival = next((t for t in ranked if t not in alike), None)
        coarser = [t.score for t in ranked if not self._single(t)]
        by_size = MATCH <= best.score < BY_SIZE and all(self._single(t) for t in alike)
        by_size = by_size and min(coarser, default=math.inf) - best.score > BY_SIZE
        accepted = best.score < MATCH or by_size
        return RecipeMatch(
            dtype=self.dtype,
            name=text(best.words) if accepted else "",
            score=best.score,
            ties=tuple(text(t.words) for t in ties) if accepted else (),
            runner_up=text(rival.words) if rival else "",
            runner_up_score=rival.score if rival else 0.0,
            residual=best.left,
            sentence=_sentence(best, ties, rival, accepted=accepted, by_size=by_size),
        )

    def _single(self, one: Tried) -> bool:
        return (self.precision if one.words[0] == NATIVE else one.words[0]) == "fp32"


def text(words: Words) -> str:
    """A candidate as a declaration."""
    return ",".join(w for w in words if w != _MIRRORED)


def built(recipe: str, dtype: str, precision: str) -> Recipe:
    """The recipe that a declaration means for a dtype.

    Raises:
        ValueError: it means none.
    """
    found = declared(recipe)
    meant = None if found is None else found.recipe(dtype, precision)
    if meant is None:
        raise ValueError(f"{recipe!r} declares nothing for {dtype}")
    return meant


def _sentence(best: Tried, ties: Sequence[Tried], rival: Tried | None, *, accepted: bool, by_size: bool) -> str:
    name = text(best.words)
    if not accepted:
        return f"no candidate recipe explains the rounding errors: the best, {name}, leaves {best.left:.0%} of their energy"
    if by_size:
        return f"errors are as small as {name} leaves them; which single roundings it has cannot be told"
    found = f"{name} explains the rounding errors but for {best.left:.2g} of their energy"
    if ties:
        whole = {t.words[1] for t in ties} - {best.words[1]}
        trace = "; the chunk size leaves no trace" if whole else ""
        return f"{found}; {len(ties)} other recipe{'s' * (len(ties) > 1)} cannot be told from it{trace}"
    worse = math.exp(min(rival.score - best.score, 50)) if rival else math.inf
    return f"{found}; the next best leaves {worse:.3g} times as much"


def mean_log(shares: Collection[float]) -> float:
    """The score: mean logarithm of what is left of each result's error; infinite where there is none."""
    return sum(math.log(max(s, _FLOOR)) for s in shares) / len(shares) if shares else math.inf


def residuals(operator: Operator, one: Observed, recipe: Recipe) -> dict[str, float]:
    """Share of each result's error energy that is left after the simulated error of a recipe is subtracted.

    Gate gradients take the form that fits best. Results without any error are left out; what a candidate cannot keep finite
    counts as unexplained.
    """
    gates = tuple(i.name for i in operator.of_kind(*GATE_KINDS) if i.name in one.answer.problem.wrt)
    forms = simulated(one.answer.recurrence, recipe, gates)
    out: dict[str, float] = {}
    for name in one.results.keys() & one.answer.reference.keys():
        ref, fmt = one.answer.reference[name], format_of(one.results[name].dtype)
        value = one.results[name].to(ref.device, torch.float64)
        energy = float((value - ref).square().sum())
        if energy > 0 and math.isfinite(energy):
            left = [float((value - round_to(f[name], fmt)).square().sum()) / energy for f in forms if name in f]
            out[name] = min((x for x in left if math.isfinite(x)), default=1.0)
    return out


def fingerprint(
    operator: Operator, dtype: str, precision: str, observed: Iterable[Observed], seconds: float = math.inf
) -> RecipeMatch:
    """Say which recipe the results of one dtype were computed with.

    Args:
        operator: what the target computes.
        dtype: of the cases.
        precision: class without a declaration: what `native` means.
        observed: cases with their results; longer than a chunk, or the chunk size leaves no trace.
        seconds: of this process's own time; after this no new candidate is tried.
    """
    return Search(operator, dtype, precision, tuple(observed), seconds).run()
