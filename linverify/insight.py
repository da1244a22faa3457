"""What a check learned besides the verdict: where the error comes from, how it grows, which recipe it fits.

Records only: the judge's side fills them, reports render them. All shares are of squared error, all errors absolute unless
named otherwise; every record names the case that replays it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Attribution:
    """The waterfall of one result: which rounding points its budget consists of, and what stays unexplained.

    Attributes:
        result, dtype, case_id: what was looked at.
        shares: stage (input, gates, scores, state, accumulation, output ...) to its share of the expected squared error;
            they sum to 1.
        unexplained: measured squared error beyond the expected one, as a share of the measured; 0 where there is none.
        sentence: what a kernel author should read out of it.
    """

    result: str
    dtype: str
    case_id: str
    shares: Mapping[str, float]
    unexplained: float = 0.0
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Growth:
    """Error against T.

    Attributes:
        result, dtype: what was measured.
        lengths: values of T.
        errors: root mean square error over that of the reference, one a length.
        slope: of log error against log T, with its 95 % interval (low, high).
        predicted: slope of the recipe's own realisations.
        safe_up_to: largest T for which the error stays useful; None where no measured or predicted T exceeds it.
        sentence: names a drift, or says that there is none.
    """

    result: str
    dtype: str
    lengths: tuple[int, ...]
    errors: tuple[float, ...]
    slope: float
    low: float
    high: float
    predicted: float
    safe_up_to: int | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class RecipeMatch:
    """Which precision recipe leaves the least residual.

    Attributes:
        dtype: of the cases.
        name: of the best candidate; "" where none is accepted.
        score: mean natural logarithm of residual over error energy; the more negative, the better the match.
        ties: candidates that cannot be told from the best one.
        runner_up: best candidate that can, with its score.
        residual: share of the error's energy that is left after the simulated error is subtracted.
        sentence: the recipe in words.
    """

    dtype: str
    name: str
    score: float
    ties: tuple[str, ...] = ()
    runner_up: str = ""
    runner_up_score: float = 0.0
    residual: float = 1.0
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Residual:
    """What is left of a result after the simulated errors of a matched recipe are subtracted.

    Attributes:
        result, dtype, case_id: what was looked at.
        recipe: the match.
        share: of what flipped bits explain; beyond 1 it is a fault below the rounding level.
        statistic: which one is largest.
        where: rows that stand out; "" where none does.
    """

    result: str
    dtype: str
    case_id: str
    recipe: str
    share: float
    statistic: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The judged case of a result and dtype that used most of its budget."""

    result: str
    dtype: str
    case_id: str
    share: float


@dataclass(frozen=True, slots=True)
class ErrorMap:
    """Where the error of one result sits: the largest share of the budget by head and position.

    Attributes:
        result, dtype, case_id: what was looked at.
        chunk: positions are t modulo this; 0 where they are t itself (long sequences in equal pieces).
        grid: one row a (batch, head), one number a position; 1 is the line.
    """

    result: str
    dtype: str
    case_id: str
    chunk: int
    grid: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ErrorCloud:
    """Elements of one result, their error against what was allowed (a sample, the worst ones included)."""

    result: str
    dtype: str
    case_id: str
    allowed: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Insight:
    """All of one target; an empty field was not looked at."""

    attribution: tuple[Attribution, ...] = ()
    growth: tuple[Growth, ...] = ()
    recipes: tuple[RecipeMatch, ...] = ()
    worst: tuple[WorstCase, ...] = ()
    maps: tuple[ErrorMap, ...] = ()
    clouds: tuple[ErrorCloud, ...] = ()
    residuals: tuple[Residual, ...] = ()


def together(parts: Sequence[Insight]) -> Insight:
    """What several processes have looked into, of one target."""
    names = [f.name for f in fields(Insight)]
    found = {n: tuple(item for part in parts for item in getattr(part, n)) for n in names}
    return Insight(**{**found, "worst": tuple(sorted(found["worst"], key=lambda case: -case.share))})
