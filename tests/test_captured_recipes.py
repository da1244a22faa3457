"""Declared recipes on results that an H100 computed: they let the kernels pass, see a real loss, and leave almost nothing."""

from functools import cache
from pathlib import Path

import pytest

from linverify.fingerprinting import Observed, built, residuals
from linverify.judge import Judge
from linverify.score import Answer
from linverify.subtracted import Subtraction
from tests.scripts import load

ROOT = Path(__file__).resolve().parents[1]


CASES = {c.name: c for c in load("captured").captured(ROOT / "tests" / "data", prefix="h100_")}


@cache
def real(name: str) -> tuple[Judge, Answer]:
    judge = Judge(CASES[name].operator, "cpu")
    return judge, judge.answer(CASES[name].problem)


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_as_good_as_its_recipe(name: str) -> None:
    case, (judge, answer) = CASES[name], real(name)
    recipe = built(case.recipe, case.dtype, case.precision)
    left = Subtraction(case.operator, answer, recipe)
    for n, value in case.results.items():
        score = judge.score(answer, n, value, case.precision, recipe)
        if n == "dg" and case.sums_in_16_bits:
            assert score.outcome == "reject", (score.share, score.statistic)
            continue
        assert score.outcome == "pass", (n, score.share, score.statistic)
        subtracted = left.score(n, value, judge.axes(n))
        assert subtracted is None or subtracted.outcome == "pass", (n, subtracted.share)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.kernel in ("scalar", "diag") and c.dtype == "bf16"])
def test_the_recipe_reproduces_the_kernel(name: str) -> None:
    case, (_, answer) = CASES[name], real(name)
    own = residuals(case.operator, Observed(answer, case.results), built(case.recipe, case.dtype, case.precision))
    other = residuals(case.operator, Observed(answer, case.results), built("native,C=16", case.dtype, case.precision))
    assert max(own[n] for n in ("o", "dq", "dv")) < 0.01 < min(other[n] for n in ("dq", "dv")), (own, other)
