"""1 + elu as libraries sum it up: features below 6e-8 are nothing in float32, and so are what they would have given."""

from functools import partial

import pytest
import torch

from linverify import draw, emulated, registry
from linverify.case import parse_case
from linverify.formulas import elu1, summing_elu
from linverify.judge import Judge
from tests.kinds import withhold
from tests.scripts import load
from tests.zoo.catalogue import CORRECT

CASE = parse_case("normalized_linear_attention/B2.T63.H2.K4.V6/bf16/regime=range/cotangent=o/scale=sqrt/seed=706")


def test_a_kernel_that_calls_its_library_s_elu_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = (e for e in CORRECT if e.name == "normalized_chunks_of_8")
    operator, rivals = registry.operator(CASE.operator), load("zoo_rivals")
    problem, judge = draw.problem(CASE, operator), Judge(operator, "cpu")
    with rivals.loaded(entry) as kernel:
        results = rivals.results(partial(kernel, scale=problem.scale), problem, backward=True)
    assert len(results) == 4
    assert {s.outcome for _, s in judge.scores(judge.answer(problem), results, "bf16")} == {"pass"}
    withhold(monkeypatch, emulated.FEATURES)
    assert judge.score(judge.answer(problem), "dv", results["dv"], "bf16").outcome == "reject"


def test_the_sum_is_the_map_but_for_its_digits() -> None:
    x = torch.linspace(-20, 3, 47)
    plain = elu1(x)
    with summing_elu(True):
        summed = elu1(x)
    assert torch.equal(elu1(x), plain)
    assert torch.equal(summed, torch.nn.functional.elu(x) + 1)
    assert float((summed - plain).abs().max()) <= 2.0**-23
    assert float(summed[0]) == 0.0 < float(plain[0])
