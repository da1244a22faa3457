"""Divisors that lose what their dividends keep, or keep what those lose: a quotient in which neither cancels."""

import dataclasses

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


def normalised_in_chunks(problem: Problem, lost: float = 0.0) -> Tensor:
    """MLSTM's o [B, T, H, V] in chunks of 64 tokens: the keys and queries that bf16 products take make the normaliser, too."""

    def cut(x: Tensor) -> Tensor:
        return x.bfloat16().float()

    x = {n: t.float().transpose(1, 2) for n, t in problem.tensors.items()}
    scale = x["q"].shape[-1] ** -0.5
    f, outs = torch.nn.functional.logsigmoid(x["f"]), []
    memory, norm = torch.zeros(x["q"].shape[-1], x["v"].shape[-1]), torch.zeros(1, x["q"].shape[-1])
    top = x["i"].new_zeros((*x["i"].shape[:2], 1))
    for q, k, v, i, g in zip(*(t.split(64, 2) for t in (x["q"], x["k"], x["v"], x["i"], f)), strict=True):
        total = g.cumsum(-1)
        logs = total[..., :, None] - total[..., None, :] + i[..., None, :]
        logs = logs.masked_fill(torch.ones_like(logs).triu(1) == 1, -torch.inf)
        rows = torch.maximum(total + top, logs.amax(-1))
        scores = q @ k.mT * scale * (logs - rows[..., None]).exp()
        query = cut(q * (total + top - rows).exp()[..., None] * scale)
        weights = scores.sum(-1) + (query * norm).sum(-1)
        divisor = torch.maximum(weights.abs() * (1 - lost), (-rows).exp())[..., None]
        outs.append((cut(scores) @ v + query @ cut(memory)) / divisor)
        out = total[..., -1:] - total + i
        new = torch.maximum(total[..., -1:] + top, out.amax(-1, keepdim=True))
        keys, kept = cut(k * (out - new).exp()[..., None]), (total[..., -1:] + top - new).exp()[..., None]
        memory, norm, top = kept * memory + keys.mT @ v, kept * norm + keys.sum(-2, keepdim=True), new
    return torch.cat(outs, 2).transpose(1, 2).bfloat16()


@pytest.mark.parametrize(("seed", "unknown"), [(2, "pass"), (4, "reject")])
def test_a_normaliser_of_rounded_keys_and_queries_is_right(seed: int, unknown: str) -> None:
    """Where it nearly cancels o is off by up to 1.2 of its root mean square: 2.30 shares at one seed, were it unknown.

    At the other 1.42 by each set of realisations; all together show such tails themselves.
    """
    operator = registry.operator("mlstm")
    case = parse_case(f"mlstm/B1.T263.H2.K64.V32/bf16/cotangent=none/seed={seed}")
    problem, outcomes = draw.problem(case, operator), []
    for asked in (operator, dataclasses.replace(operator, ways={})):
        judge = Judge(asked, "cpu")
        answer = judge.answer(problem)
        outcomes += [judge.score(answer, "o", normalised_in_chunks(problem, x), "bf16").outcome for x in (0.0, 0.05)]
    assert outcomes == ["pass", "reject", unknown, "reject"]
