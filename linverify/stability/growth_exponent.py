"""D4, the growth exponent: how a derivative by a score grows as the divisor (or what is normed) goes to zero.

Queries fade by powers of two, 2^0 to 2^-30 or as far as it takes to pass below an eps; each step is a batch row of one call.
A line through log derivative against log Z gives the exponent: 0 where nothing grows, -1 for one division, -2 where signed
scores cancel. Where growth ends, the crossover is the point at which the line meets the level that follows.

Reference: with an eps the derivative is about 1 / (Z + eps): slope -1 far above it, level below, crossing at Z = eps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.growth import fitted
from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED
from linverify.problem import Fault, Refused
from linverify.stability.inputs import Tensors, faded, ladder, same_rows, telling, towards
from linverify.stability.probe import WIDTH, Probe
from linverify.stability.records import Curve, Finding, unchecked

TOKENS = 4
# Slopes nearer than this are one law: the exponents are whole numbers.
NEAR = 0.05
FACTOR = 2.0
# A line is fitted where its abscissa is so far above the crossover that 1 / (Z + eps) is a power to within half of NEAR.
_ABOVE = 40.0
_FEWEST = 4
_EARLY = 4
# Over the last steps a derivative that does not change by more than this has stopped growing.
_LEVEL = 1.05
_LAST = 4
# Growth has been seen to end, or not to, where the abscissa came so far below the crossover.
_SEEN = 256.0


@dataclass(frozen=True, slots=True)
class Law:
    """What a derivative does: an exponent with its 95 % interval, the level it ends at, and where.

    Attributes:
        slope, low, high: of the growing part; of everything where nothing grows.
        level: the largest value, where growth has ended; None where it has not.
        crossover: abscissa where the line meets the level, or None.
    """

    slope: float
    low: float
    high: float
    level: float | None
    crossover: float | None

    @property
    def verdict(self) -> str:
        """Bounded where nothing grows, by an eps where growth ends."""
        if abs(self.slope) < NEAR:
            return BOUNDED
        return UNBOUNDED if self.level is None else BY_EPS


def law(x: Sequence[float], y: Sequence[float]) -> Law:
    """Fit derivatives y against falling abscissas x.

    Raises:
        ValueError: too few points are positive and finite.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if 0 < a < math.inf and 0 < b < math.inf]
    if len(points) < 2 * _FEWEST:
        raise ValueError(f"expected at least {2 * _FEWEST} positive finite derivatives, got {len(points)}")
    xs, ys = [a for a, _ in points], [b for _, b in points]
    tail = ys[-_LAST:]
    level = tail[-1] if max(tail) <= _LEVEL * min(tail) else None
    if level is None or max(ys) <= _LEVEL * min(ys):
        slope, low, high = fitted(xs, ys)
        return Law(slope, low, high, level, None)
    half = next(a for a, b in points if b >= level / 2)
    above = [(a, b) for a, b in points if a >= _ABOVE * half]
    if len(above) < _FEWEST:  # a level is reached at once: there is no growth to fit
        above = [(a, b) for a, b in points if b >= level / _LEVEL]
        return Law(*fitted([a for a, _ in above], [b for _, b in above]), level, None)
    slope, low, high = fitted([a for a, _ in above], [b for _, b in above])
    middle = sum(math.log(b) - slope * math.log(a) for a, b in above) / len(above)
    return Law(slope, low, high, level, math.exp((math.log(level) - middle) / slope))


def growth_exponent(probe: Probe) -> Finding:
    """Let queries fade and fit; where scores may cancel, let them."""
    if not probe.query:
        return unchecked("D4", "growth", probe.dtype, f"{probe.operator.name} has no query that could fade")
    try:
        return _measured(probe)
    except (Refused, Fault, TypeError, ValueError) as error:
        return unchecked("D4", "growth", probe.dtype, str(error))


def _measured(probe: Probe) -> Finding:
    facts = probe.facts
    if facts is None:
        return _by_query_alone(probe)
    x, by_score, by_query, name = fade(probe)
    score, cut = _law_of(probe, x, by_score)
    # feature maps of queries come to their asymptotes within the first few steps
    least = _ABOVE * ((facts.crossover(WIDTH) if cut else score.crossover) or 0.0)
    own = [(a, b) for a, b in zip(x, by_query, strict=True) if a >= least and 0 < b < math.inf]
    query = fitted(*(list(axis) for axis in zip(*own[_EARLY:], strict=True)))
    curves = [Curve(tuple(x), tuple(by_score), name, "|ds| / |do|", mark=score.crossover, label="by a score")]
    curves += [Curve(tuple(x), tuple(by_query), name, "|dq| / |do|", label="by the query itself")]
    figures = {"slope": score.slope, "low": score.low, "high": score.high, "slope of dq": query[0]}
    figures |= {} if score.crossover is None else {"crossover": score.crossover}
    figures |= {} if score.level is None else {"level": score.level}
    worst, expected = score.slope, facts.slope
    # what stops at a floor of the mechanism's own is no matter of an eps
    verdict = BOUNDED if score.verdict == BY_EPS and facts.promise == BOUNDED else score.verdict
    verdict = facts.promise if cut else verdict
    wrong, differs = _beyond(probe, score, cut=cut), cut
    if facts.lipschitz is not None and query[0] < -NEAR:
        wrong.append(f"a query's own gradient grows like {name}^{query[0]:.3f}, which its feature map rules out")
    if score.slope > facts.slope + NEAR:
        differs += f"; the mechanism's own exponent is {facts.slope:g}"
    if facts.signed and facts.divisor == "sum" and facts.weight == "identity":
        z, cancelled = cancel(probe)
        other = law(z, cancelled)
        figures |= {"slope of cancelling scores": other.slope}
        curves.append(Curve(tuple(z), tuple(cancelled), "|Z + eps|", "|ds| / |do|", label="scores that cancel"))
        verdict = other.verdict if other.slope < -NEAR and other.level is None else verdict
        worst, expected = other.slope, -2.0
        if other.slope < expected - NEAR:
            wrong.append(f"cancelling scores: slope {other.slope:.3f}, expected {expected:g}")
    sentence = _sentence(score, name, figures, cut=cut)
    return Finding(
        "D4",
        "growth",
        probe.dtype,
        verdict,
        not wrong,
        worst,
        expected,
        f"{TOKENS} tokens, queries faded to {name} = {x[-1]:.3g}: |ds| / |do| = {by_score[-1]:.4g}",
        "; ".join(wrong) or sentence + differs,
        figures,
        tuple(curves),
    )


def _law_of(probe: Probe, x: list[float], y: list[float]) -> tuple[Law, str]:
    """The law of derivatives y; and what to say where the format cannot hold them down to where growth should end."""
    facts = probe.facts
    assert facts is not None
    end = facts.crossover(WIDTH)
    known = [a for a, b in zip(x, y, strict=True) if 0 < a < math.inf and 0 < b < math.inf]
    if end is None or not known or min(known) < end / _SEEN:
        return law(x, y), ""
    above = [(a, b) for a, b in zip(x, y, strict=True) if a >= _ABOVE * end]
    found = law(*(list(axis) for axis in zip(*above, strict=True)))
    return found, f"; {probe.dtype} holds it down to {min(known):.3g} only, too early to see an end at {end:.3g}"


def _sentence(found: Law, name: str, figures: dict[str, float], *, cut: str) -> str:
    interval = f"({found.low:.3f} to {found.high:.3f})"
    if found.verdict == BOUNDED:
        told = f"does not grow as the query fades: {name}^{found.slope:.3f} {interval}"
    else:
        told = f"grows like {name}^{found.slope:.3f} {interval}"
        if found.crossover is not None:
            told += f" down to {name} = {found.crossover:.3g}, then stays at {found.level:.4g}"
        else:
            told += "" if cut else ", without end"
    return f"the derivative by a score {told}; a query's own goes like {name}^{figures['slope of dq']:.3f}"


def _beyond(probe: Probe, found: Law, *, cut: str) -> list[str]:
    """Where growth is steeper than the mechanism's, or goes on below where the mechanism ends it."""
    facts = probe.facts
    assert facts is not None
    wrong = []
    if found.slope < facts.slope - NEAR:
        wrong.append(f"slope {found.slope:.3f} ({found.low:.3f} to {found.high:.3f}), expected {facts.slope:g}")
    expected = facts.crossover(WIDTH)
    if cut:
        return wrong
    if expected is not None and found.crossover is None and found.level is None:
        wrong.append(f"growth does not end, though {facts.words} ends it at {expected:.3g}")
    elif expected is not None and found.crossover is not None and found.crossover < expected / FACTOR:
        wrong.append(f"growth ends at {found.crossover:.3g}, expected {expected:.3g}")
    return wrong


def fade(probe: Probe) -> tuple[list[float], list[float], list[float], str]:
    """Abscissas as queries fade, |ds| / |do| of the largest score, |dq| / |do|, and the abscissa's name."""
    facts = probe.facts
    assert facts is not None
    base = telling(probe, 1, TOKENS, "growth")
    factors = ladder(probe, probe.row(base))
    tensors = faded(probe, same_rows(base, probe, len(factors)), factors)
    row = probe.row(tensors)
    _, scores, asked = probe.score_gradients(tensors, towards(row))
    by_query = asked.grads[probe.query][:, -1, 0].norm(dim=-1)
    if facts.norm != "none":
        x, name = row.length[:, 0], "|m|"
    elif facts.slope:
        x, name = row.total.abs()[:, 0], "Z"
    else:
        x, name = factors, "factor"
    return x.tolist(), scores.abs().amax((1, 2)).tolist(), by_query.tolist(), name


def cancel(probe: Probe) -> tuple[list[float], list[float]]:
    """|Z + eps| as two scores cancel while their size stays, and |ds| / |do| of the larger one."""
    facts = probe.facts
    assert facts is not None
    base = telling(probe, 1, 2, "cancelling")
    first = float(probe.row(base).scores[0, 0, 0])
    factors = 2.0 ** -torch.arange(1, 21, dtype=torch.float64)
    tensors = same_rows(base, probe, len(factors))
    key = tensors[probe.key]
    # the second score is the first one's opposite, less eps, plus what is to be left
    share = 1 + facts.eps / first - factors
    key[:, 1] = -key[:, 0] * share[:, None, None]
    row = probe.row(tensors)
    _, scores, _ = probe.score_gradients(tensors, towards(row))
    return row.divisor.abs()[:, 0].tolist(), scores.abs().amax((1, 2)).tolist()


def _by_query_alone(probe: Probe) -> Finding:
    """An operator without rows: its query fades, and the query's own gradient is all that can be followed."""
    factors = 2.0 ** -torch.arange(31, dtype=torch.float64)
    tensors: Tensors = faded(probe, same_rows(probe.inputs(1, TOKENS), probe, len(factors)), factors)
    shape = probe.ask(tensors).o.shape
    upstream = torch.zeros(shape, dtype=torch.float64)
    along = torch.randn(shape[2:], generator=probe.generator("growth"), dtype=torch.float64)
    upstream[:, -1] = along / along.norm()
    gains: Tensor = probe.ask(tensors, upstream).grads[probe.query][:, -1].flatten(1).norm(dim=1)
    found = law(factors.tolist(), gains.tolist())
    return Finding(
        "D4",
        "growth",
        probe.dtype,
        found.verdict,
        True,
        found.slope,
        None,
        f"queries faded to 2^-30: |dq| / |do| = {float(gains[-1]):.4g}",
        f"a query's own gradient goes like its factor^{found.slope:.3f} ({found.low:.3f} to {found.high:.3f})",
        {"slope": found.slope, "low": found.low, "high": found.high},
        (Curve(tuple(factors.tolist()), tuple(gains.tolist()), "factor", "|dq| / |do|"),),
    )
