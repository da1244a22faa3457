"""1 + elu as libraries sum it up: features below 6e-8 are nothing in float32, and so are what they would have given."""

import pytest
import torch

from linverify import draw, emulated, registry
from linverify.case import parse_case
from linverify.formulas import SUMMED_ELU, elu1
from linverify.judge import Judge
from tests.scripts import load
from tests.zoo.catalogue import CORRECT

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = parse_case("normalized_linear_attention/B2.T63.H2.K4.V6/bf16/regime=range/cotangent=o/scale=sqrt/seed=706")


def test_a_kernel_that_calls_its_library_s_elu_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = (e for e in CORRECT if e.name == "normalized_chunks_of_8")
    operator, stacks = registry.operator(CASE.operator), emulated.stacks
    problem = draw.problem(CASE, operator)
    given = {n: t.clone().requires_grad_() for n, t in problem.tensors.items()}
    with load("zoo_rivals").loaded(entry) as kernel:
        o = kernel(**given, scale=problem.scale)
        o.backward(problem.cotangents["o"])
    results = {"o": o.detach()} | {f"d{n}": t.grad for n, t in given.items() if t.grad is not None}
    outcomes = {}
    for known in (True, False):
        monkeypatch.setattr(
            emulated,
            "stacks",
            lambda q, p, known=known: tuple(s for s in stacks(q, p) if known or s[0] != emulated.FEATURES),
        )
        judge = Judge(operator, "cpu")
        outcomes[known] = {n: s.outcome for n, s in judge.scores(judge.answer(problem), results, "bf16")}
    assert set(outcomes[True].values()) == {"pass"}
    assert outcomes[False]["dv"] == "reject"
    assert not SUMMED_ELU.get()


def test_the_sum_is_the_map_but_for_its_digits() -> None:
    x = torch.linspace(-20, 3, 47)
    plain = elu1(x)
    token = SUMMED_ELU.set(True)
    summed = elu1(x)
    SUMMED_ELU.reset(token)
    assert torch.equal(summed, torch.nn.functional.elu(x) + 1)
    assert float((summed - plain).abs().max()) <= 2.0**-23
    assert float(summed[0]) == 0.0 < float(plain[0])
