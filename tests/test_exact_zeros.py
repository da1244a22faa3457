"""Where exactly nothing is due nothing is rounded: a small constant there is a fault, in every format.

What a kernel leaves where terms cancel is another matter: realisations have it, too.
"""

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.budget import TINY, output_variance
from linverify.case import parse_case
from linverify.dtype import BF16, FP16, FP32, Format
from linverify.impls.torch_naive import rwkv7
from linverify.impls.torch_recurrent import simple_gla
from linverify.judge import Judge
from linverify.score import Score

RESULTS = ("o", "dq", "dk", "dv")
# a quarter of all queries, keys and values are exactly zero
CASE = "simple_gla/B2.T37.H3.K16.V8/{}/regime=zeros/cotangent=o/scale=one/seed=3"


def score(dtype: str, result: str, constant: float, *, everywhere: bool = True) -> Score:
    """Judge a correctly rounded result with a constant where nothing is due, everywhere or in one place."""
    operator = registry.operator("simple_gla")
    problem, by = draw.problem(parse_case(CASE.format(dtype)), operator), Judge(operator, "cpu")
    answer = by.answer(problem)
    reference = answer.reference[result]
    value, places = reference.to(problem.tensors["v"].dtype), (reference == 0).nonzero()
    assert len(places) > 50
    for at in places if everywhere else places[:1]:
        value[tuple(at)] = constant
    return by.score(answer, result, value, dtype)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_constant_where_nothing_is_due_is_found(dtype: str, result: str, everywhere: bool) -> None:
    assert score(dtype, result, 0.0).outcome == "pass"
    assert score(dtype, result, 1e-3, everywhere=everywhere).outcome == "reject"


@pytest.mark.parametrize("result", RESULTS)
def test_it_would_pass_if_nothing_had_the_spacing_of_one(monkeypatch: pytest.MonkeyPatch, result: str) -> None:
    def lavish(ref: Tensor, fmt: Format, bias: float = 0.0) -> Tensor:
        return output_variance(torch.where(ref == 0, 1.0, ref), fmt, bias)

    monkeypatch.setattr("linverify.screening.output_variance", lavish)
    assert score("bf16", result, 1e-3).outcome == "pass"


@pytest.mark.parametrize("fmt", [BF16, FP16, FP32], ids=lambda f: f.name)
def test_the_scale_of_nothing_is_the_smallest_number(fmt: Format) -> None:
    found = float(output_variance(torch.zeros(1, dtype=torch.float64), fmt, 0.1))
    assert found == pytest.approx(fmt.smallest_subnormal**2 / 12 + TINY, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_what_cancels_in_a_gates_gradient_is_no_fault(seed: int) -> None:
    """The first gate decays an empty state, so its gradient is 0; as a sum of q dq - k dk it is what float32 leaves of it."""
    operator = registry.operator("simple_gla")
    case = parse_case(f"simple_gla/B1.T33.H2.K16.V8/fp32/gate=mild/state=absent/cotangent=o/seed={seed}")
    problem, by = draw.problem(case, operator), Judge(operator, "cpu")
    answer = by.answer(problem)
    assert float(answer.reference["dg"][:, 0].abs().max()) < 1e-13
    leaves = {n: x.clone().requires_grad_() for n, x in problem.tensors.items()}
    o, _ = simple_gla(**leaves, scale=answer.recurrence.scale)
    dq, dk = torch.autograd.grad(o, [leaves["q"], leaves["k"]], [problem.cotangents["o"]])
    terms = (leaves["q"] * dq - leaves["k"] * dk).sum(-1).detach()
    dg = terms.flip(1).cumsum(1).flip(1)
    assert bool((dg[:, 0] != 0).any())
    assert by.score(answer, "dg", dg, "fp32").outcome == "pass"


@pytest.mark.parametrize(("part", "outcome"), [(2.0**-50, "pass"), (2.0**-44, "reject")])
def test_what_no_sum_in_float32_can_hold_beside_the_largest_is_nothing(part: float, outcome: str) -> None:
    largest = float(draw_reference("o").abs().amax())
    assert score("fp32", "o", part * largest).outcome == outcome


def draw_reference(result: str) -> Tensor:
    problem = draw.problem(parse_case(CASE.format("fp32")), registry.operator("simple_gla"))
    return Judge(registry.operator("simple_gla"), "cpu").answer(problem).reference[result]


# The state forgets, so gradients fall to 1e-24 of the last token's; the naive form solves for all tokens at once, in float64.
FADING = "rwkv7/B1.T313.H1.K4.V6/fp32/gate=mild/final_state=1/cotangent=state/scale=one"


def faded() -> Score:
    """The naive form's da."""
    operator = registry.operator("rwkv7")
    problem, by = draw.problem(parse_case(FADING), operator), Judge(operator, "cpu")
    leaves = {n: x.clone().requires_grad_() for n, x in problem.tensors.items()}
    _, state = rwkv7(**leaves, scale=problem.scale, output_final_state=True)
    (da,) = torch.autograd.grad(state, [leaves["a"]], [problem.cotangents["state"]])
    return by.score(by.answer(problem), "da", da, "fp32")


def test_a_system_over_all_tokens_need_not_follow_what_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faded().share < 0.2

    def every_element(ref: Tensor, fmt: Format, bias: float = 0.0) -> Tensor:
        return output_variance(ref.reshape(-1, 1, 1, 1), fmt, bias).view(ref.shape)

    monkeypatch.setattr("linverify.screening.output_variance", every_element)
    assert faded().outcome == "reject"
