"""One sentence on what an error looks like: rules over the shape of the error, most telling first.

A diagnosis is a lead for the author, not a proof; each rule states what was seen before what it suggests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.case import Case
from linverify.dtype import parse
from linverify.location import bad_elements
from linverify.operator import GATE_KINDS, Operator
from linverify.probing import BLOCKS
from linverify.score import Score
from linverify.verdict import Location

# A fitted factor counts as seen when it explains all but this share of the error's energy.
_EXPLAINED = 0.02
# In a shorter sequence the last token is half of it.
_TELLING = 4
# A factor nearer to 1 is an error of accuracy.
_A_FACTOR = 0.001
# Up to this share of the budget, or this many unit roundoffs, an error has the size of rounding; beyond, of a wrong term.
_ROUNDING = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What the rules look at; `timed` says whether rows are time steps, `precision` which class judges."""

    score: Score
    result: str
    name: str
    case: Case
    precision: str
    where: Location
    got: Tensor
    timed: bool
    gate: bool


def diagnose(
    score: Score,
    result: str,
    case: Case,
    operator: Operator,
    where: Location,
    got: Tensor,
    *,
    timed: bool,
    precision: str,
) -> str:
    """Say in one sentence what the error of a rejected result looks like; `precision` is the class that judged it."""
    name = "the final state" if result == "state" else result
    gates = {f"d{i.name}" for i in operator.of_kind(*GATE_KINDS)}
    look = _Look(score, result, name, case, precision, where, got, timed, result in gates)
    return next(text for rule in _RULES if (text := rule(look)))


def _not_finite(x: _Look) -> str:
    bad = ~torch.isfinite(x.got)
    if not bool(bad.any()):
        return ""
    calm = x.case.gate in ("none", "mild", "tiny")
    cause = (
        "memory that was never written, or an overflow"
        if calm
        else "exp of a positive exponent before it is masked, or infinite sums of gates subtracted from each other"
    )
    return f"{x.name} is not finite in {float(bad.double().mean()):.0%} of its elements: {cause}"


def _nothing(x: _Look) -> str:
    zero = float(x.got.double().abs().max()) == 0 and float(x.score.ref.abs().max()) > 0
    return f"{x.name} is zero everywhere: it is not computed, or not stored" if zero else ""


def _factor(x: _Look) -> str:
    e, r = x.score.error, x.score.ref
    energy = r.square().sum()
    if float(energy) == 0 or x.score.share < _ROUNDING:
        return ""
    slope = (e * r).sum() / energy
    left = (e - slope * r).square().sum() / e.square().sum().clamp(min=1e-300)
    if float(left) > _EXPLAINED:
        return ""
    factor, root = 1 + float(slope), x.case.K**0.5
    if abs(factor - 1) < _A_FACTOR:
        return ""
    known = ((root, "K^(1/2): the scale is missing"), (1 / root, "K^(-1/2): the scale is applied twice"), (-1, "-1"))
    meaning = next((m for value, m in known if abs(factor / value - 1) < _EXPLAINED), f"{factor:.4g}")
    return f"{x.name} is the right result times {meaning}"


def _rounding(x: _Look) -> str:
    e, r = x.score.error.square().mean().sqrt(), x.score.ref.square().mean().sqrt()
    unit = parse(x.precision).unit_roundoff
    if x.score.share > _ROUNDING and float(e) > _ROUNDING * unit * float(r):
        return ""
    if x.gate:
        return (
            f"{x.name} is less accurate than a gate gradient summed in float32: "
            "look at the format in which the state term or the sum over tokens is accumulated"
        )
    if x.case.dtype in ("fp32", "tf32", "fp64"):
        return f"{x.name} is off by more than {x.precision} arithmetic explains: some step runs in a lower precision"
    return (
        f"{x.name} is noisier than rounding in {x.case.dtype} explains: "
        "an operand, the state or an accumulator is kept in too low a precision, or a small term is wrong"
    )


def _tail(x: _Look) -> str:
    """Errors confined to the last, partial block of the sequence."""
    length, first = x.score.error.shape[1], x.where.first_bad_t
    if not x.timed or first is None:
        return ""
    for block in reversed(BLOCKS):
        if length % block and first >= length // block * block > 0:
            if first % block == 0:  # a case more tells them apart: see linverify.probing
                return (
                    f"{x.name} is wrong only from t={first} on, where the last, partial block of {block} begins "
                    f"(T={length}): its mask, or what the block before hands on"
                )
            return f"{x.name} is wrong only from t={first} on, in the last, partial block of {block} (T={length}): its mask"
    return ""


def _hand_over(x: _Look) -> str:
    first, chunk = x.where.first_bad_t, x.where.suspected_chunk
    if not first or not chunk or first % chunk:
        return ""
    return f"{x.name} is right up to t={first - 1} and wrong from t={first}: the state handed from block to block of {chunk}"


def _last_token(x: _Look) -> str:
    length = x.score.error.shape[1]
    if not x.timed or length < _TELLING or x.where.first_bad_t != length - 1:
        return ""
    return f"only the last token of {x.name} is wrong: an off-by-one at the end of the sequence"


def _within_blocks(x: _Look) -> str:
    """Right at one end of every block of tokens, wrong elsewhere: what is wrong comes from the other tokens of the block."""
    if not x.timed or x.case.lengths:
        return ""
    length = x.score.error.shape[1]
    bad = bad_elements(x.score).any((0, 2)).tolist()
    for block in BLOCKS:
        if length <= block:
            break
        last = [t % block == block - 1 or t == length - 1 for t in range(length)]
        first = [t % block == 0 for t in range(length)]
        for ends, which, others in ((last, "last", "later"), (first, "first", "earlier")):
            if all(b is not e for b, e in zip(bad, ends, strict=True)):
                return (
                    f"{x.name} is right at the {which} token of every block of {block} and wrong at all others: "
                    f"a term that comes from {others} tokens of the same block"
                )
    return ""


def _lanes(x: _Look) -> str:
    if not x.where.heads:
        return ""
    return f"{x.name} is wrong only in {x.where.heads}: an index or stride along batch or heads"


def _features(x: _Look) -> str:
    """Errors in some columns alone; scattered over most of them, as noise beyond a line is, they are no tile."""
    if not x.where.features or x.where.features.count(",") > 1:
        return ""
    return f"{x.name} is wrong only in features {x.where.features}: a tile or mask along the feature axis"


def _anything(x: _Look) -> str:
    where = x.where.times or "all positions"
    return f"{x.name} differs from the equations at {where}: a term is missing, extra, or read from the wrong place"


_RULES: tuple[Callable[[_Look], str], ...] = (
    _not_finite,
    _nothing,
    _factor,
    _rounding,
    _tail,
    _hand_over,
    _last_token,
    _within_blocks,
    _lanes,
    _features,
    _anything,
)
