"""What a check tells besides its verdict: gathered at its end, in limited time, from the cases nearest to the line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter

from torch import Tensor

from linverify.attribution import Stages, attribute, stages
from linverify.bench import Bench
from linverify.case import Case
from linverify.draw import call_layouts, problem
from linverify.emulated import emulates, row_length
from linverify.errormaps import error_cloud, error_map
from linverify.errors import LinverifyError
from linverify.fingerprinting import Observed, built, fingerprint, mean_log, residuals
from linverify.growth import FEWEST, Rung, far_rung, growth, rung
from linverify.insight import (
    Attribution,
    ErrorCloud,
    ErrorMap,
    Growth,
    Insight,
    RecipeMatch,
    Residual,
    WorstCase,
)
from linverify.location import spans
from linverify.problem import Call, Fault, Refused
from linverify.profile import Profile
from linverify.recipe import Recipe, family
from linverify.regime import gate_regimes
from linverify.score import Answer, Unjudgeable
from linverify.segments import segmentable
from linverify.subtracted import subtracted

# In a short check only what is near the line, or beyond it, is looked into.
NEAR_THE_LINE = 0.8
# Past two chunks of 64, so that chunk sizes differ in what they leave; and no multiple of any.
_LENGTH = 130
# The stepwise reference takes a second or two for so many tokens.
_STEPS = 1100
# Mean logarithm of what a match leaves: one part in fifty, or else nothing is said of what is left.
_OVERWHELMING = -4.0
_LADDER = tuple(2**n for n in range(6, 19))
# Tokens up to which o and the state are followed alone, where a sequence can be cut into segments: on a CPU, and on a GPU.
_FAR = (2**14, 2**18)
_SHARES = {"look": 0.4, "fingerprint": 0.7, "growth": 1.0}
# By result and dtype: the largest share of the budget, and its case.
Worst = Mapping[tuple[str, str], tuple[float, Case]]


@dataclass(eq=False)
class Gathering:
    """One target's insight in the making.

    Attributes:
        bench: the target.
        dtypes: that were checked.
        capabilities: what the target offers.
        profile: how much is asked.
        seconds: for all of it.
        asks: whether the target may be asked cases of its own: for the recipe, and for growth.
        stopped: whether the session's own time is up.
    """

    bench: Bench
    dtypes: tuple[str, ...]
    capabilities: frozenset[str]
    profile: Profile
    seconds: float
    asks: bool
    stopped: Callable[[], bool]
    recipes: list[RecipeMatch] = field(default_factory=list)
    residuals: list[Residual] = field(default_factory=list)
    attribution: list[Attribution] = field(default_factory=list)
    maps: list[ErrorMap] = field(default_factory=list)
    clouds: list[ErrorCloud] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    worst: list[WorstCase] = field(default_factory=list)
    _start: float = field(default_factory=perf_counter)
    _stages: dict[str, Stages] = field(default_factory=dict)

    def run(self) -> Insight:
        """Look into the worst cases, between what needs cases of its own: the recipe, and growth."""
        self._each(self.dtypes, self._fingerprint, "look")
        self.look(self.bench.worst, "fingerprint")
        self._each(self.dtypes, self._grow, "growth")
        return self.found()

    def study(self) -> Insight:
        """Ask for what needs cases of its own, in the time that looking into the worst cases leaves for that."""
        self._each(self.dtypes, self._fingerprint, "look")
        self.seconds *= _SHARES["look"] + _SHARES["growth"] - _SHARES["fingerprint"]
        self._each(self.dtypes, self._grow, "growth")
        return self.found()

    def look(self, worst: Worst, until: str) -> None:
        """Look into cases, those that used most of their budget first."""
        seen = {key: found for key, found in worst.items() if key[1] in self.dtypes}
        for (result, dtype), (share, case) in sorted(seen.items(), key=lambda item: -item[1][0]):
            self.worst.append(WorstCase(result, dtype, case.id, share))
            if (self.asks or share > NEAR_THE_LINE) and not self._late(until):
                with _whatever_happens():
                    self._look(result, dtype, case)

    def found(self) -> Insight:
        """What was found so far."""
        return Insight(
            attribution=tuple(self.attribution),
            growth=tuple(self.growth),
            recipes=tuple(self.recipes),
            worst=tuple(self.worst),
            maps=tuple(self.maps),
            clouds=tuple(self.clouds),
            residuals=tuple(self.residuals),
        )

    def _each(self, dtypes: tuple[str, ...], ask: Callable[[str], None], until: str) -> None:
        for dtype in dtypes:
            if self._studies(dtype) and not self._late(until):
                with _whatever_happens():
                    ask(dtype)

    def _studies(self, dtype: str) -> bool:
        return self.asks and not emulates(self.bench.operator) and dtype != "fp64"

    def _late(self, part: str) -> bool:
        return self.stopped() or perf_counter() - self._start > self.seconds * _SHARES[part]

    def calls(self, dtype: str) -> list[Call]:
        """Calls of a study: of the recipe's case, and of growth at the first length, which stands for all, twice.

        What it asks of the longest rows, it asks without gradients.
        """
        if not self._studies(dtype):
            return []
        first = self._case(dtype, _LADDER[0], "none")
        cases = self._case(dtype, _LENGTH, "production"), first, first.with_(cotangent="none")
        return [Call(problem(c, self.bench.operator), *call_layouts(c), "nan") for c in cases]

    def _asked(self, case: Case) -> tuple[Answer, dict[str, Tensor]]:
        """A case's reference and results, as the laws asked it: usually both are remembered."""
        posed = problem(case, self.bench.operator)
        call = Call(posed, *call_layouts(case), "nan")
        result = self.bench.solve(call, (case.id, call.layout, call.cotangent_layout, call.poison))
        return self.bench.answer(posed, case.id), result.named()

    def _recipe(self, case: Case, answer: Answer) -> Recipe:
        """What to compare a case with: what is declared, else what was found, else the first of its family."""
        declared = self.bench.recipe(case)
        if declared is not None:
            return declared
        precision = self.bench.precision(case)
        found = next((m.name for m in self.recipes if m.dtype == case.dtype and m.name), None)
        if found is not None:
            return built(found, case.dtype, precision)
        return family(precision, gate=answer.recurrence.rows.gate)[0][0]

    def _look(self, result: str, dtype: str, case: Case) -> None:
        """Map, cloud and waterfall of one result's worst case."""
        answer, results = self._asked(case)
        if result not in results:
            return
        judge, axes = self.bench.judge, self.bench.judge.axes(result)
        score = judge.score(answer, result, results[result], self.bench.precision(case), self.bench.recipe(case))
        if row_length(answer.question) <= _STEPS and score.outcome == "pass":
            self.bench.certified(answer, result, score)
        picture = error_map(score, axes, case.H, result, dtype, case.id)
        self.maps += [] if picture is None else [picture]
        self.clouds.append(error_cloud(score, result, dtype, case.id))
        if emulates(self.bench.operator):
            return
        if case.id not in self._stages:
            self._stages[case.id] = stages(self.bench.operator, answer, self._recipe(case, answer))
        found = attribute(self._stages[case.id], answer, result, results[result], case.id, dtype)
        self.attribution += [] if found is None else [found]

    def _case(self, dtype: str, T: int, gate: str) -> Case:
        """A plain case of this length with everything in it that the target offers."""
        operator, can = self.bench.operator, self.capabilities
        widths = self.profile.compiled_widths if self.bench.compiles else self.profile.widths
        K, V = widths[0] if self.bench.compiles else (16, 20)
        final = "final_state" in can
        return Case(
            operator.name,
            1,
            T,
            2,
            K,
            V,
            dtype=dtype,
            gate=gate if gate in gate_regimes(operator) else "none",
            state="normal" if "initial_state" in can else "absent",
            final_state=final,
            cotangent="none" if "gradients" not in can else "both" if final else "o",
            seed=1,
        )

    def _fingerprint(self, dtype: str) -> None:
        """Search the recipe, and judge what is left of a match."""
        case = self._case(dtype, _LENGTH, "production")
        answer, results = self._asked(case)
        left = self.seconds * _SHARES["look"] - (perf_counter() - self._start)
        share = max(0.0, left) / max(1, len(self.dtypes) - len(self.recipes))
        precision, operator = self.bench.precision(case), self.bench.operator
        match = fingerprint(operator, dtype, precision, [Observed(answer, results)], share)
        promised = self.bench.recipe(case)
        if promised is not None and match.name:
            match = replace(match, sentence=match.sentence + self._promise(promised, answer, results, match.score))
        self.recipes.append(match)
        if not match.name or match.score > _OVERWHELMING:
            return
        axes = {n: self.bench.judge.axes(n) for n in results}
        scores = subtracted(operator, answer, results, built(match.name, dtype, precision), axes)
        for name, score in scores.items():
            z = (score.error / score.sigma).abs()
            rows = sorted({int(i) for i in (z > score.allowed).any(-1).any(0).nonzero()[:, 0]})
            where = "t" if "T" in axes[name].letters else "row"
            at = f"{where} {spans(rows)}" if rows else "spread out"
            self.residuals.append(
                Residual(name, dtype, case.id, match.name, score.share, score.statistic, at if score.share > 1 else "")
            )

    def _promise(self, promised: Recipe, answer: Answer, results: dict[str, Tensor], best: float) -> str:
        """Whether the declared recipe explains the errors as well as the best one does."""
        left = residuals(self.bench.operator, Observed(answer, results), promised).values()
        kept = mean_log(left) - best <= -_OVERWHELMING
        return (
            "" if kept else f"; the declared recipe, {promised.name}, does not: the kernel rounds elsewhere or to less"
        )

    def _grow(self, dtype: str) -> None:
        """Climb the ladder of lengths as far as time allows."""
        end = perf_counter() + max(0.0, self.seconds - (perf_counter() - self._start)) / (
            len(self.dtypes) - self.dtypes.index(dtype)
        )
        longest = (self.profile.gpu_long_T if self.bench.compiles else self.profile.long_T)[1]
        rungs: list[Rung] = []
        last = 0.0
        for T in (n for n in _LADDER if n <= 2 * longest):
            start = perf_counter()
            if start + 2 * last > end:  # the next one takes twice as long
                break
            case = self._case(dtype, T, "none")
            answer, results = self._asked(case)
            rungs.append(rung(self.bench.operator, answer, results, self._recipe(case, answer), T))
            last = perf_counter() - start
        names = tuple(rungs[-1].target) if rungs else ()
        farthest = 0 if segmentable(self.bench.operator) else _FAR[self.bench.device.startswith("cuda")]
        for T in (n for n in _LADDER if rungs and rungs[-1].T < n <= farthest):
            start = perf_counter()
            if start + 2 * last > end or "final_state" not in self.capabilities:
                break
            before = len(rungs)
            with _whatever_happens():  # what it has no memory for leaves the shorter ones
                rungs.append(self._far(dtype, T))
            if len(rungs) == before:
                break
            last = perf_counter() - start
        if len(rungs) >= FEWEST:
            found = [growth(rungs, name, dtype) for name in names]
            self.growth += [g for g in found if g is not None]

    def _far(self, dtype: str, T: int) -> Rung:
        """A rung of o and the state alone."""
        case = self._case(dtype, T, "none").with_(cotangent="none")
        posed = problem(case, self.bench.operator)
        call = Call(posed, *call_layouts(case), "nan")
        results = self.bench.solve(call, (case.id, call.layout, call.cotangent_layout, call.poison)).named()
        short = case.with_(T=_LENGTH)
        answer = self.bench.answer(problem(short, self.bench.operator), short.id)
        device = self.bench.judge.device
        return far_rung(self.bench.operator, posed, results, self._recipe(case, answer), device)


@dataclass(frozen=True, slots=True)
class Gatherer:
    """Gathers what there is to tell; a short check looks at what is near the line and asks for nothing more.

    Attributes:
        bench: the target.
        capabilities: what it offers.
        profile: how much is asked.
        stopped: whether the session's own time is up.
        short: whether the check is.
    """

    bench: Bench
    capabilities: frozenset[str]
    profile: Profile
    stopped: Callable[[], bool]
    short: bool

    def everything(self, dtypes: tuple[str, ...]) -> Insight:
        """All there is to tell of what was seen in these dtypes."""
        return self._gathering(dtypes).run()

    def calls(self, dtype: str) -> list[Call]:
        """Calls that a study of a dtype will make."""
        return self._gathering((dtype,)).calls(dtype)

    def study(self, dtype: str) -> Insight:
        """The recipe and the growth of one dtype, for which the laws need not have been asked."""
        return self._gathering((dtype,)).study()

    def look(self, worst: Worst, recipes: Sequence[RecipeMatch]) -> Insight:
        """What the worst cases show; `recipes` were found before."""
        gathering = self._gathering(tuple({dtype: None for _, dtype in worst}))
        gathering.recipes = list(recipes)
        gathering.look(worst, "look")
        return replace(gathering.found(), recipes=())

    def _gathering(self, dtypes: tuple[str, ...]) -> Gathering:
        return Gathering(
            self.bench,
            dtypes,
            self.capabilities,
            self.profile,
            self.profile.insight_seconds,
            not self.short and self.profile.name != "quick",
            self.stopped,
        )


@contextmanager
def _whatever_happens() -> Iterator[None]:
    """An insight that cannot be had is left out: the laws have already said what the target refuses or how it fails."""
    try:
        yield
    except (Fault, Refused, Unjudgeable, LinverifyError, KeyError):
        return
