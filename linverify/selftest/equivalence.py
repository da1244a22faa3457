"""Does a mutant compute anything else than its original?

It is asked the same as the original on many cases and in every layout and dtype of the check, and compared twice:

in float64: the two sources with float32 made float64. Results that share half of their digits or more are equal: rounding
    reaches the last few, and what differs in the first half cannot be rounding. A few elements may be what large terms leave
    of each other; so an element is held to its own size, and to the last quarter of the digits of the largest one.
in the case's own dtype: the unchanged sources. What is equal in exact arithmetic may still overflow, or round more. A mutant
    is no mistake while its root-mean-square error against the reference is at most four times the original's and that of
    rounding the result to the case's dtype: kernels that everybody calls correct multiply operands of that dtype, and differ
    by two bits of accuracy. In a single case that is luck, where one element holds most of the error: it counts in half of the
    cases that the mutant changes, three or more.

Whatever else is visible counts too: a refusal, a crash, memory that was shared, changed or never written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from linverify.case import Case
from linverify.draw import call_layouts, problem
from linverify.dtype import FP64, Format, format_of
from linverify.operator import Operator
from linverify.problem import Call, Fault, Program, Refused, Result
from linverify.regime import fits

_HALF = FP64.unit_roundoff**0.5
_DEEP = FP64.unit_roundoff**0.75
_COARSER = 4.0
_SEVERAL = 3
# What a property only reports is no mistake.
_REPORTED = {"not_contiguous", "kept_result"}


class Asker(Protocol):
    """Runs programs: a runner."""

    def run(self, program: Program, *, time_limit: float) -> tuple[Result, ...]:
        """Run a program."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a kernel made of one case: a result, or in a word why there is none."""

    result: Result | None
    ending: str = ""

    @property
    def signs(self) -> frozenset[str]:
        """Everything about it that is no number."""
        if self.result is None:
            return frozenset({self.ending})
        return frozenset({*(b.kind for b in self.result.breaches), *self.result.named()} - _REPORTED)


def in_float64(case: Case) -> Case:
    """Return the same case with float64 numbers."""
    return case.with_(dtype="fp64", mixture="usual")


def can_widen(case: Case) -> bool:
    """Whether the case makes sense in float64."""
    return fits(case.regime, "fp64")


def call(case: Case, operator: Operator) -> Call:
    """Return the case's own problem in its own layouts."""
    inputs, cotangents = call_layouts(case)
    return Call(problem(case, operator), inputs, cotangents)


def answer(asker: Asker, asked: Call, *, time_limit: float) -> Answered:
    """Ask one call."""
    try:
        (result,) = asker.run(Program((asked,)), time_limit=time_limit)
    except Refused as refusal:
        return Answered(None, f"refused: {refusal.kind}")
    except Fault as fault:
        return Answered(None, fault.kind)
    return Answered(result)


def visible(original: Answered, mutant: Answered) -> str:
    """Say what differs but the numbers, "" where nothing does."""
    if original.signs == mutant.signs:
        shapes = _shapes(original) == _shapes(mutant)
        return "" if shapes else "a result has another shape or dtype"
    more, less = sorted(mutant.signs - original.signs), sorted(original.signs - mutant.signs)
    return "; ".join(filter(None, (", ".join(more), f"without {', '.join(less)}" if less else "")))


def in_exact_arithmetic(original: Answered, mutant: Answered) -> str:
    """Say which result differs by more than rounding of float64 does, "" where none does."""
    if original.result is None or mutant.result is None:
        return ""
    found = mutant.result.named()
    for name, a in original.result.named().items():
        share = _difference(a.double(), found[name].double())
        if share > 1.0:
            return f"{name} differs by {share * _HALF:.2g} of itself"
    return ""


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of what is still equal; infinite where one is finite and the other is not."""
    apart = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(apart.any()):
        return 0.0
    if bool((apart & ~(a.isfinite() & b.isfinite())).any()):
        return torch.inf
    size = torch.maximum(a.abs(), b.abs())
    finite = torch.where(size.isfinite(), size, 0.0)
    allowed = _HALF * size + _DEEP * finite.max()
    return float(((a - b).abs() / allowed)[apart].max())


def overflows(original: Answered, mutant: Answered) -> str:
    """Say which result is finite elsewhere than the original's, "" where none is."""
    if original.result is None or mutant.result is None:
        return ""
    found = mutant.result.named()
    for name, a in original.result.named().items():
        if not torch.equal(found[name].isfinite(), a.isfinite()):
            return f"{name} is not finite"
    return ""


def coarsened(original: Answered, mutant: Answered, reference: Mapping[str, Tensor], dtype: Format) -> float | None:
    """The largest growth of a result's error, in units of what kernels may differ by; None where all are bit by bit equal.

    `reference` holds the float64 results of the case by name, `dtype` is the case's own.
    """
    if original.result is None or mutant.result is None:
        return None
    found, growth = mutant.result.named(), []
    for name, a in original.result.named().items():
        b, exact = found[name], reference[name].cpu()
        if not bool(((a == b) | (a.isnan() & b.isnan())).all()):
            good = a.isfinite() & b.isfinite() & exact.isfinite()
            rounding = max(format_of(a.dtype).unit_roundoff, dtype.unit_roundoff) * _rms(torch.where(good, exact, 0.0))
            before, after = (_rms(torch.where(good, x.double() - exact, 0.0)) for x in (a, b))
            allowed = _COARSER * (before + rounding)
            growth.append(after / allowed if allowed else torch.inf if after else 0.0)
    return max(growth, default=None)


def coarser(growths: Sequence[float]) -> bool:
    """Whether a mutant is less accurate than its original, from the growth of its error in the cases that it changes."""
    return len(growths) >= _SEVERAL and sum(g > 1.0 for g in growths) * 2 >= len(growths)


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _shapes(answered: Answered) -> dict[str, tuple[object, ...]]:
    return {} if answered.result is None else {n: (t.shape, t.dtype) for n, t in answered.result.named().items()}
