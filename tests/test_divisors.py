"""A quotient whose divisor is no product of tensor cores: what the dividend's products truncate does not cancel there."""

import pytest
import torch
from torch import Tensor

from linverify import draw, emulated, registry
from linverify.case import parse_case
from linverify.dtype import TF32, round_to
from linverify.judge import Judge
from linverify.problem import Problem
from tests.kinds import withhold

OPERATOR = registry.operator("normalized_linear_attention")
assert OPERATOR.mechanism is not None
EPS = OPERATOR.mechanism.eps
CASE = "normalized_linear_attention/B2.T70.H2.K64.V32/fp32/cotangent=none/scale=one/seed=1"


def cut(x: Tensor) -> Tensor:
    """Truncated as an operand of a tensor core."""
    return round_to(x.float(), TF32)


def kernel(problem: Problem, lost: float = 0.0) -> Tensor:
    """O [B, T, H, V] of two products of truncated operands over a sum in float32, which may lose a part of itself."""
    q, k = ((torch.nn.functional.elu(problem.tensors[n]) + 1).transpose(1, 2) for n in "qk")
    v = problem.tensors["v"].transpose(1, 2)
    scores = (cut(q) @ cut(k).mT).tril()
    divisor = (q * k.cumsum(2)).sum(-1, keepdim=True) * (1 - lost) + EPS
    return (cut(scores) @ cut(v) / divisor).transpose(1, 2)


def test_what_a_dividend_alone_truncates_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """As flash-linear-attention's normalised kernels on an H100 (fla-core 0.6.0): o at 1.4 shares, gradients at up to 1.65."""
    problem, judge = draw.problem(parse_case(CASE), OPERATOR), Judge(OPERATOR, "cpu")
    assert judge.score(judge.answer(problem), "o", kernel(problem), "tf32").outcome == "pass"
    assert judge.score(judge.answer(problem), "o", kernel(problem, 0.005), "tf32").outcome == "reject"
    withhold(monkeypatch, emulated.DIVISOR)
    assert judge.score(judge.answer(problem), "o", kernel(problem), "tf32").outcome == "reject"
