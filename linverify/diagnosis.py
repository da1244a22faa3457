"""One sentence on what an error looks like: rules over the shape of the error, most telling first.

A diagnosis is a lead for the author, not a proof; each rule states what was seen before what it suggests.
"""

import torch
from torch import Tensor

from linverify.case import Case
from linverify.judge import Score
from linverify.statistics import Axes
from linverify.verdict import Location

# A fitted factor counts as seen when it explains all but this share of the error's energy.
_EXPLAINED = 0.02


def _factor(score: Score) -> float | None:
    """The constant factor by which the result differs from the reference, if one explains the error."""
    e, r = score.error, score.ref
    energy = r.square().sum()
    if not bool(torch.isfinite(e).all()) or float(energy) == 0:
        return None
    slope = (e * r).sum() / energy
    left = (e - slope * r).square().sum() / e.square().sum().clamp(min=1e-300)
    return 1 + float(slope) if float(left) < _EXPLAINED else None


def _named_factor(factor: float, case: Case) -> str:
    root = case.K**0.5
    for value, meaning in (
        (root, "K^(1/2): the scale is missing"),
        (1 / root, "K^(-1/2): the scale is applied twice"),
        (case.K, "K: the scale is inverted"),
    ):
        if abs(factor / value - 1) < _EXPLAINED:
            return meaning
    return f"{factor:.4g}"


def _by_row_error(score: Score) -> Tensor:
    return torch.nan_to_num(score.error / score.sigma, nan=1e9, posinf=1e9, neginf=-1e9).square().mean((0, 2)).sqrt()


def diagnose(score: Score, result: str, case: Case, axes: Axes, where: Location, got: Tensor) -> str:
    """Say in one sentence what the error of a rejected result looks like."""
    name = "the final state" if result == "state" else result
    finite = torch.isfinite(got)
    if not bool(finite.all()):
        share = float((~finite).double().mean())
        cause = (
            "memory that was never written, or an overflow"
            if case.gate in ("none", "mild")
            else "an exponent that overflows before it is masked, or memory never written"
        )
        return f"{name} is not finite in {share:.0%} of its elements ({where.times or 'everywhere'}): {cause}"
    if float(got.double().abs().max()) == 0:
        return f"{name} is zero everywhere: the result is not computed, or not stored"
    factor = _factor(score)
    if factor is not None and abs(factor) < _EXPLAINED:
        return f"{name} is almost zero: the result is not computed"
    if factor is not None and score.share > 3:
        return f"{name} is the right result times {_named_factor(factor, case)}"
    ragged = _tail(score, axes, where)
    if ragged:
        return f"{name} {ragged}"
    if where.first_bad_t and where.suspected_chunk and where.first_bad_t % where.suspected_chunk == 0:
        return f"{name} is right up to t={where.first_bad_t - 1} and wrong from there: the state handed from one block of {where.suspected_chunk} to the next"
    if (
        where.first_bad_t is not None
        and "T" in axes.letters
        and where.first_bad_t == score.error.shape[1] - 1
        and score.error.shape[1] > 1
    ):
        return f"only the last token of {name} is wrong: an off-by-one at the end of the sequence"
    if where.heads:
        return f"{name} is wrong only in {where.heads}: an index or stride along batch or heads"
    if where.features:
        return f"{name} is wrong only in features {where.features}: a tile or mask along the feature axis"
    if result in ("dg", "dw", "ddt", "dA") and score.share < 20:
        return f"{name} loses accuracy in a sum that cancels: check the format in which the state term or the reverse sum is accumulated"
    if score.share < 20 and case.dtype != "fp32":
        return f"{name} is noisier than any usual rounding in {case.dtype}: an operand, state or accumulator is kept in too low a precision"
    if score.share < 1e4 and case.dtype in ("fp32", "tf32"):
        return f"{name} is off by more than float32 arithmetic explains: some step runs in a lower precision, or a term is slightly wrong"
    return f"{name} differs from the mathematics at {where.times or 'all positions'}: a term is missing, extra, or read from the wrong place"


def _tail(score: Score, axes: Axes, where: Location) -> str:
    """Errors confined to the last, partial block of the sequence (or, for gradients, spreading back from it)."""
    length = score.error.shape[1]
    if "T" not in axes.letters or where.first_bad_t is None:
        return ""
    for block in (128, 64, 32, 16):
        start = length // block * block
        if length % block and where.first_bad_t >= start > 0:
            return f"is wrong only from t={where.first_bad_t} on, in the last, partial block of {block} (T={length}): a tail mask is missing or wrong"
    return ""


def diagnose_state_tail(case: Case) -> str:
    """For a final state that is wrong only where T is no multiple of a block."""
    block = next((b for b in (64, 32, 16) if case.T % b), 16)
    return f"the final state is wrong where T={case.T} leaves a partial block (T mod {block} = {case.T % block}): a tail mask is missing or wrong"
