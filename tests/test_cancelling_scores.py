"""Scores of outlying keys: terms that are large and cancel lose by their own size, not by that of what is left of them."""

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import parse_case
from linverify.dtype import BF16, FP32, Format
from linverify.impls.torch_chunkwise import gla
from linverify.judge import Judge
from linverify.noise import Noise
from linverify.recipe import uniform
from linverify.score import Score

U = FP32.unit_roundoff
# The last token's dv is one score times do, and that score cancels; nothing decays.
OUTLYING = "gla/B1.T32.H6.K33.V48/fp32/regime=outlier/final_state=1/cotangent=o/scale=other/seed=1642"


def noise(fmt: Format = FP32, samples: int = 400) -> Noise:
    generator = torch.Generator().manual_seed(5)
    recipe = uniform(fmt.name, 16, fmt)
    return Noise((recipe,), samples, 1, dither=True, generator=generator, device=torch.device("cpu"))


def judged(times: float = 1.0) -> Score:
    """The chunkwise form's dv, its error so many times as large."""
    operator = registry.operator("gla")
    problem, by = draw.problem(parse_case(OUTLYING), operator), Judge(operator, "cpu")
    leaves = {n: x.clone().requires_grad_() for n, x in problem.tensors.items()}
    o, _ = gla(**leaves, scale=problem.scale, output_final_state=True)
    (dv,) = torch.autograd.grad(o, [leaves["v"]], [problem.cotangents["o"]])
    answer = by.answer(problem)
    exact = answer.reference["dv"]
    return by.score(answer, "dv", (exact + times * (dv.double() - exact)).float(), "fp32")


def test_what_is_left_of_an_outlying_key_is_no_fault() -> None:
    assert judged().share < 0.7


def test_it_would_be_one_if_only_the_score_erred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noise, "summands", lambda self, weights, terms: weights)
    monkeypatch.setattr("linverify.analytic.LINE", 0.0)  # nothing is settled without realisations
    assert judged().outcome == "reject"


def test_eight_times_as_much_is_one() -> None:
    assert judged(8.0).outcome == "reject"


@pytest.mark.parametrize("terms", [16, 33, 128])
def test_summands_lose_what_a_float32_sum_of_them_does(terms: int) -> None:
    """Of sums that cancel, whose partial sums are as large as the root of their number: n/2 times the terms' energy."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(1, 2000, terms, generator=generator)
    total = torch.zeros(1, 2000)
    for i in range(terms):
        total = total + x[..., i]
    real = float((total.double() - x.double().sum(-1)).square().mean().sqrt())
    wide = x.double().expand(20, -1, -1)
    drawn = (noise(samples=20).summands(torch.ones_like(wide), terms) * wide).sum(-1) - wide.sum(-1)
    modelled = float(drawn.square().mean().sqrt())
    assert modelled == pytest.approx(
        0.42 * U * (terms / 2) ** 0.5 * float(wide.square().sum(-1).mean()) ** 0.5, rel=0.05
    )
    assert 0.5 < real / modelled < 1.5


def test_summands_err_where_float32_is_all_that_errs() -> None:
    ones = torch.ones(400, 7, 5, dtype=torch.float64)
    assert torch.equal(noise(BF16).summands(ones, 64), ones)
    silent: Tensor = Noise(
        (uniform("fp32", 16, FP32),), 1, 1, dither=False, generator=None, device=torch.device("cpu")
    ).summands(ones, 64)
    assert torch.equal(silent, ones)
    assert not bool((noise().summands(ones, 64) == 1).any())
