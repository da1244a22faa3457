"""Operators with parameters other than their defaults: forms, mpmath and every identity that the variant claims."""

import importlib

import mpmath
import numpy as np
import pytest
import torch

from linverify import draw, registry
from linverify.binding import bind
from linverify.case import Case
from linverify.dtype import FP64
from linverify.errors import UsageError
from linverify.operator import Operator
from linverify.parameters import with_parameters
from linverify.problem import Problem
from linverify.reference import highprecision, solve, stated
from linverify.regime import operand_regimes
from tests import test_gradient_identities, test_identities
from tests.kinds import suited
from tests.test_operators import describe

VARIANTS = (
    ("softmax_attention", "causal=false"),
    ("softmax_attention", "window=3"),
    ("softmax_attention", "causal=false,window=3"),
    ("linear_attention", "causal=false"),
    ("linear_angular_attention", "half=all,norm=false"),
    ("linear_angular_attention", "half=all"),
    ("gau", "causal=true"),
    ("gau", "norm=outside"),
    ("flash", "chunk=3"),
    ("flash", "chunk=3,causal=true"),
)
NAMES = [f"{name}:{text}" for name, text in VARIANTS]
CHECKS = {**test_identities.CHECKS, **test_gradient_identities.CHECKS}


def variant(name: str) -> Operator:
    word, _, text = name.partition(":")
    given = dict(part.split("=") for part in text.split(",")) if text else {}
    return with_parameters(registry.operator(word), given)


def ask(operator: Operator, T: int, **changes: object) -> Problem:
    case = Case(operator.name, 2, T, 2, 5, 4, dtype="fp64", cotangent="o", scale="other", seed=T)
    return draw.problem(suited(case, operator).with_(**changes), operator)


@pytest.mark.parametrize("name", NAMES)
def test_forms_agree(name: str) -> None:
    operator = variant(name)
    for T in (1, 2, 17, 40):
        p = ask(operator, T)
        expected = solve(p, operator)
        for form in (*operator.form_names[1:], *operator.ways):
            for n, t in stated(p, operator, form=form).items():
                torch.testing.assert_close(t, expected[n], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_mpmath_certifies_float64(name: str) -> None:
    operator = variant(name)
    p = ask(operator, 7, B=1, K=3, V=2)
    exact, double = highprecision(p, operator), solve(p, operator)
    largest = max(float(t.abs().max()) for t in double.values())
    for n, t in double.items():
        off = np.vectorize(mpmath.mpf, otypes=[object])(t.numpy()) - exact[n]
        assert max(abs(x) for x in off.flat) < 256 * FP64.unit_roundoff * largest, n


@pytest.mark.parametrize("name", NAMES)
def test_claimed_identities_hold(name: str) -> None:
    operator = variant(name)
    for claim in sorted(operator.identities):
        CHECKS[claim](operator)


@pytest.mark.parametrize(
    ("claim", "name"),
    [
        ("M8", "softmax_attention:causal=false,window=3"),
        ("M8", "gau:causal=true"),
        ("M8", "flash:chunk=3"),
        ("M4", "flash:chunk=3"),
        ("M4", "gau"),
        ("M4", "softmax_attention:causal=false"),
        ("M1", "linear_angular_attention:half=all"),
    ],
)
def test_what_a_variant_does_not_claim_fails(claim: str, name: str) -> None:
    operator = variant(name)
    assert claim not in operator.identities
    with pytest.raises(AssertionError):
        CHECKS[claim](operator)


@pytest.mark.parametrize("name", NAMES)
def test_built_in_forms_take_the_parameters(name: str) -> None:
    operator = variant(name)
    p = ask(operator, 21)
    for form in operator.form_names:
        function = getattr(importlib.import_module(f"linverify.impls.torch_{form}"), operator.name)
        found = bind(operator, describe(function, operator.name), settings={}, claims={})
        o, state = function(**p.tensors, scale=p.scale, **found.settings)
        assert state is None
        torch.testing.assert_close(o, solve(p, operator)["o"], rtol=1e-11, atol=1e-13)


def test_a_function_with_an_argument_of_that_name_is_told() -> None:
    def attention(q, k, v, causal=False, window_size=None): ...

    windowed = bind(variant("softmax_attention:window=5"), describe(attention, "attention"), settings={}, claims={})
    assert windowed.settings == {"causal": True, "window_size": 5}
    plain = bind(variant("softmax_attention:causal=false"), describe(attention, "attention"), settings={}, claims={})
    assert plain.settings == {}


def test_a_form_that_a_variant_lacks_is_an_error() -> None:
    function = importlib.import_module("linverify.impls.torch_recurrent").linear_attention
    x = torch.zeros(1, 3, 1, 2)
    with pytest.raises(ValueError, match="no recurrent form"):
        function(x, x, x, causal=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("softmax_attention:window=-1", "window of at least 1"),
        ("flash:chunk=0", "chunk of at least 1"),
        ("gau:norm=both", "expected norm among"),
        ("linear_angular_attention:half=none", "expected half among"),
        ("efficient_attention:causal=false", "has none"),
    ],
)
def test_bad_parameters_get_one_clear_line(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        variant(text)


def test_zero_rows_are_outside_the_domain_where_norms_divide() -> None:
    for name in ("hydra_attention", "linear_angular_attention"):
        operator = registry.operator(name)
        assert "zeros" not in operand_regimes(operator)
        with pytest.raises(UsageError, match="unknown regime"):
            ask(operator, 9, regime="zeros")
        assert torch.isfinite(solve(ask(operator, 9, regime="range"), operator)["o"]).all()
