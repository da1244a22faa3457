"""Every diagnostic is moved by a planted fault, and by no fault that is another diagnostic's business."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from linverify.plan import Plan
from linverify.stability.records import Finding, Stability
from linverify.stability.runner import kernels

KERNELS = Path(__file__).with_name("stability_kernels.py")
NORMALISED, NORM = "normalized_linear_attention", "norm_attention"


@cache
def diagnosed(function: str, operator: str) -> Stability:
    (found,) = kernels(Plan(f"{KERNELS}::{function}", operator=operator), (), lambda _: None)
    return found


def apart(before: Finding, after: Finding) -> bool:
    """Whether a reader takes something else from the second finding."""
    if (before.verdict, before.holds) != (after.verdict, after.holds) or differs(before.number, after.number):
        return True
    ends = (f.figures.get("crossover") for f in (before, after))
    return differs(*ends, floor=0.0)


def differs(a: float | None, b: float | None, floor: float = 0.5) -> bool:
    """Whether two numbers are a tenth apart; exponents near zero have a floor, a crossover has none."""
    if a is None or b is None:
        return a is not b
    return abs(a - b) > 0.1 * max(abs(a), abs(b), floor)


def moved(function: str, operator: str) -> set[str]:
    """The diagnostics whose findings are not those of the right kernel."""
    sound = diagnosed("right" if operator == NORMALISED else "norm_right", operator).findings
    found = diagnosed(function, operator).findings
    assert [(f.diagnostic, f.dtype) for f in sound] == [(f.diagnostic, f.dtype) for f in found]
    return {b.diagnostic for a, b in zip(sound, found, strict=True) if apart(a, b)}


@pytest.mark.parametrize(("function", "operator"), [("right", NORMALISED), ("norm_right", NORM)])
def test_a_right_kernel_keeps_what_its_mechanism_promises(function: str, operator: str) -> None:
    found = diagnosed(function, operator)
    assert found.verdict == "pass"
    assert found.promise == "bounded by eps"
    assert {f.diagnostic for f in found.findings if f.verdict != "unchecked"} == {"D1", "D2", "D3", "D4", "D6", "D7"}
    verdicts: Mapping[str, str] = {f.diagnostic: f.verdict for f in found.findings}
    assert verdicts["D2"] == verdicts["D4"] == "bounded by eps"
    assert verdicts["D7"] == "bounded"


FAULTS = (
    ("query_unscaled", NORMALISED, {"D1"}),
    ("dominated", NORMALISED, {"D2"}),
    ("value_shrunk", NORMALISED, {"D3"}),
    ("eps_early", NORMALISED, {"D4"}),
    ("window", NORMALISED, {"D6"}),
    ("divides_in_half", NORMALISED, {"D7"}),
    # both read derivatives by scores off the gradients of keys
    ("key_scaled", NORMALISED, {"D2", "D3"}),
    # a supremum and an exponent see the same growth
    ("eps_dropped", NORMALISED, {"D2", "D4"}),
    ("divided_twice", NORMALISED, {"D2", "D4"}),
    ("norm_without_eps", NORM, {"D2", "D4"}),
)


@pytest.mark.parametrize(("function", "operator", "expected"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_moves_its_own_diagnostic(function: str, operator: str, expected: set[str]) -> None:
    assert moved(function, operator) == expected


# what grows too little is told, and exceeds nothing
WITHIN = {"eps_early"}


@pytest.mark.parametrize(("function", "operator"), [(f, o) for f, o, _ in FAULTS])
def test_a_fault_beyond_the_bound_is_a_violation(function: str, operator: str) -> None:
    found = diagnosed(function, operator)
    assert found.verdict == ("pass" if function in WITHIN else "violation")
    for f in found.findings:
        assert f.sentence
        assert f.holds or f.shown_by


def test_lost_eps_is_unbounded_with_its_input() -> None:
    d2, d4 = (f for f in diagnosed("eps_dropped", NORMALISED).findings if f.diagnostic in ("D2", "D4"))
    assert d2.verdict == d4.verdict == "unbounded"
    assert d2.number is not None
    assert d2.number > 10
    assert "Z = " in d2.shown_by
    assert "Z = " in d4.shown_by
    assert d4.number == pytest.approx(-1.0, abs=0.05)


def test_two_divisions_have_the_exponent_minus_two() -> None:
    (d4,) = (f for f in diagnosed("divided_twice", NORMALISED).findings if f.diagnostic == "D4")
    assert d4.number == pytest.approx(-2.0, abs=0.05)
    assert "expected -1" in d4.sentence
