"""The analytic variance against the realisations that it saves, and against sums written out by hand."""

from functools import cache

import pytest
import torch

from linverify import analytic, budget, draw, registry
from linverify.case import Case
from linverify.emulated import emulates
from linverify.judge import Answer, Judge
from linverify.recipe import storage
from tests.kinds import suited
from tests.scripts import load

PLAIN = [n for n, o in registry.operators().items() if o.canonical is not None and not emulates(o)]
# What it cannot tell: of a general low-rank term the cotangent of what it reads is not among the results.
MISSING = {
    "rwkv7": {"dw", "dk", "dv", "da", "db", "dinitial_state"},
    "dplr": {"dg", "dk", "dv", "da", "db", "dinitial_state"},
    "iplr": {"dk", "dv", "da", "db", "dinitial_state"},
}


@cache
def asked(name: str, precision: str) -> tuple[Judge, Answer]:
    operator = registry.operator(name)
    gate = "mild" if operator.gated else "none"
    dtype = "fp32" if precision == "tf32" else precision
    case = Case(
        name, 1, 50, 2, 16, 12, dtype=dtype, gate=gate, state="normal", final_state=True, cotangent="both", seed=2
    )
    by = Judge(operator, "cpu")
    return by, by.answer(draw.problem(suited(case, operator), operator))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_it_is_of_the_size_of_the_realisations_and_seldom_above(name: str, precision: str) -> None:
    by, answer = asked(name, precision)
    known = analytic.variances(answer.question, answer.reference, precision)
    assert set(answer.reference) - set(known) == MISSING.get(name, set())
    *_, members = by._growing(answer, precision, 0)
    for result, variance in known.items():
        axes = by.axes(result)
        able = [m for m in members if result in m.finite]
        floor = budget.output_variance(axes.view(answer.reference[result]), storage(precision))
        scale, _ = budget.scale(able, lambda errors, n=result: errors[n], axes, floor)
        ratio = ((axes.view(variance) + floor).sqrt() / scale).flatten()
        assert 0.005 < float(ratio.median()) < 1.3, result
        # two realisations scatter by themselves
        assert float(ratio.quantile(0.95)) < 2.0, result


def test_two_tokens_of_a_scalar_gate_by_hand() -> None:
    case = Case("simple_gla", 1, 2, 1, 3, 2, dtype="bf16", gate="mild", cotangent="o", scale="one", seed=0)
    operator = registry.operator("simple_gla")
    by = Judge(operator, "cpu")
    answer = by.answer(draw.problem(case, operator))
    q, k, v, g = (answer.problem.tensors[n][0, :, 0].double() for n in "qkvg")
    found = analytic.variances(answer.question, answer.reference, "bf16")
    unit = analytic.units(answer.recurrence, "bf16")
    score = torch.stack([q[1] @ k[0] * g[1].exp(), q[1] @ k[1]])
    assert torch.allclose(found["o"][0, 1, 0], unit * (score.square() @ v.square()))
    do = answer.problem.cotangents["o"][0, :, 0].double()
    into_v = unit * ((q[0] @ k[0]) ** 2 * do[0].square() + score[0] ** 2 * do[1].square())
    assert torch.allclose(found["dv"][0, 0, 0], into_v)
    into_k = unit * ((v[0] @ do[0]) ** 2 * q[0].square() + (v[0] @ do[1] * g[1].exp()) ** 2 * q[1].square())
    assert torch.allclose(found["dk"][0, 0, 0], into_k)


def test_it_settles_results_of_a_kernel_that_rounds_its_operands() -> None:
    kernel = load("subtle_faults").kernel
    case = Case("gla", 1, 65, 2, 32, 24, dtype="bf16", gate="mild", state="normal", final_state=True, cotangent="both")
    operator = registry.operator("gla")
    by, problem = Judge(operator, "cpu"), draw.problem(case, operator)
    answer = by.answer(problem)
    for n, value in kernel(problem, "gla", "bf16").items():
        assert by.score(answer, n, value, "bf16").outcome == "pass", n
    assert by.counts["analytic"] >= 6
    wrong = kernel(problem, "gla", "bf16", "decay of k one token late")
    assert by.score(answer, "o", wrong["o"], "bf16").outcome == "reject"


def test_a_class_without_a_format_is_left_to_the_realisations() -> None:
    _, answer = asked("gla", "bf16")
    assert analytic.variances(answer.question, answer.reference, "fp64") == {}
