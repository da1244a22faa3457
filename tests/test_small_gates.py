"""What has hardly decayed is rounded to itself: a state without its gates, coherently, and yet right."""

import pytest
import torch
from torch import Tensor

from linverify import draw, emulated, registry
from linverify.case import parse_case
from linverify.judge import Judge
from linverify.reference.question import Question
from tests.kinds import withhold

# Rows of 34 steps, two a token: one chunk of a kernel's.
CASE = parse_case(
    "gated_delta_product/B3.T17.H2.K128.V64/bf16/gate=tiny/state=zero/final_state=1/cotangent=none/scale=one/seed=8574"
)


def of_one_chunk(question: Question) -> Tensor:
    """The final state as chunkwise kernels form it: keys times what was solved for, kept in bfloat16, decayed, and rounded."""
    rows = question.rows
    assert rows.beta is not None
    assert rows.log_decay is not None
    state, written = torch.zeros_like(rows.state), []
    for t in range(rows.k.shape[1]):
        state = rows.log_decay[:, t, :, None].exp() * state
        key = rows.k[:, t]
        value = rows.beta[:, t] * (rows.v[:, t] - (key[..., None] * state).sum(1))
        written.append(value)
        state = state + key[..., None] * value[:, None]
    left = rows.log_decay.sum(1, keepdim=True) - rows.log_decay.cumsum(1)
    kept = torch.stack(written, 1).bfloat16().double()
    return question.unstates(rows.k.mT @ (left.exp() * kept).bfloat16().double()).float()


def test_what_rounds_its_values_to_themselves_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = registry.operator(CASE.operator)
    problem, judge = draw.problem(CASE, operator), Judge(operator, "cpu")
    answer = judge.answer(problem)
    with torch.no_grad():
        state = of_one_chunk(answer.recurrence)
    lost = (state - answer.reference["state"]) / answer.reference["state"]
    assert 1e-4 < float(lost.median()) < 4e-3  # of the sign that a lost decay has
    assert judge.score(answer, "state", state, "bf16").outcome == "pass"
    withhold(monkeypatch, emulated.DIFFERENCES)
    assert judge.score(judge.answer(problem), "state", state, "bf16").outcome == "reject"
