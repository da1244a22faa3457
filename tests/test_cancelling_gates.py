"""Gradients of gates that are what is left of terms that cancel: sound kernels leave what their products lost."""

import pytest
import torch
from torch import Tensor

from linverify import draw, emulated, recipe, registry
from linverify.case import parse_case
from linverify.judge import Judge
from linverify.problem import Problem
from tests.kinds import withhold

GLA = registry.operator("gla")
PRODUCT = registry.operator("gated_delta_product")


def token_by_token(problem: Problem) -> Tensor:
    """Gradient of the log gate of one token without a state, q dq - k dk, each summed over the values, in float32."""
    q, k, v = (problem.tensors[n].float()[..., None] for n in "qkv")
    do = problem.cotangents["o"].float()[..., None]
    dq = (k * v.mT * do.mT).sum(-1)
    dk = (q * do.mT * v.mT).sum(-1)
    return q[..., 0] * dq - k[..., 0] * dk


@pytest.mark.parametrize("seed", [924, 927, 935])
def test_what_float32_leaves_of_one_token_is_right(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    problem = draw.problem(parse_case(f"gla/B1.T1.H1.K16.V32/fp16/cotangent=o/scale=one/seed={seed}"), GLA)
    judge, left = Judge(GLA, "cpu"), token_by_token(problem)
    assert 0 < float(left.abs().max()) < 4e-6
    assert judge.score(judge.answer(problem), "dg", left, "fp16").outcome == "pass"
    assert judge.score(judge.answer(problem), "dg", left + 1e-5, "fp16").outcome == "reject"
    monkeypatch.setattr(recipe, "FEW", 0)
    if seed != 924:  # that one was near the line
        assert judge.score(judge.answer(problem), "dg", left, "fp16").outcome == "reject"


@pytest.mark.parametrize("packed", ["", "/lengths=20.1.16"])
def test_the_form_that_takes_gates_from_the_other_gradients_is_exact_in_float64(packed: str) -> None:
    name = (
        f"gated_delta_product/B1.T37.H2.K16.V8/fp32/gate=mild/state=normal/final_state=1/cotangent=both{packed}/seed=3"
    )
    judge = Judge(PRODUCT, "cpu")
    answer = judge.answer(draw.problem(parse_case(name), PRODUCT))
    for n, value in emulated._run(answer.question, emulated.DIFFERENCES, None, torch.float64).items():
        assert judge.score(answer, n, value, "fp64").outcome == "pass", n


def test_what_tensor_cores_leave_of_a_first_gate_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on an H100, truncated TF32 (triton_delta:gated_delta_product, torch 2.11.0, Triton 3.6.0); 0 is expected."""
    problem = draw.problem(parse_case("gated_delta_product/B1.T1.H1.K64.V32/fp32/cotangent=o/scale=one"), PRODUCT)
    judge, measured = Judge(PRODUCT, "cpu"), torch.full_like(problem.tensors["g"], -0.000234604)
    answer = judge.answer(problem)
    assert judge.score(answer, "dg", measured, "tf32").outcome == "pass"
    (member,) = [m for ms in answer.members.values() for m in ms if emulated.DIFFERENCES in m.name]
    apart = measured - member.nearest["dg"][0].to(measured)  # no more than float32 sums leave
    assert judge.score(answer, "dg", apart, "fp32").outcome == "pass"
    assert judge.score(answer, "dg", measured, "fp32").outcome == "reject"
    withhold(monkeypatch, emulated.DIFFERENCES)
    assert judge.score(judge.answer(problem), "dg", measured, "tf32").outcome == "reject"


def test_a_gate_gradient_that_is_off_by_a_hundredth_is_still_wrong() -> None:
    name = (
        "gated_delta_product/B2.T72.H2.K64.V32/fp32/gate=production/state=normal/final_state=1/cotangent=both/seed=212"
    )
    problem = draw.problem(parse_case(name), PRODUCT)
    judge = Judge(PRODUCT, "cpu")
    answer = judge.answer(problem)
    wrong = (1.01 * answer.reference["dg"]).float()
    assert judge.score(answer, "dg", wrong, "tf32").outcome == "reject"
