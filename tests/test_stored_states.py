"""Gate gradients of kernels that keep the states of chunks in 16 bits: sound, and no cover for mistakes."""

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import parse_case
from linverify.judge import Judge
from linverify.problem import Problem

GLA = registry.operator("gla")


def one_token(dtype: str) -> Problem:
    """A token between two states, as in decoding; few of their products are large, so roundings do not average out."""
    case = parse_case(f"gla/B1.T1.H2.K128.V64/{dtype}/state=normal/final_state=1/cotangent=both/seed=1")
    plain = draw.problem(case, GLA)
    wide = torch.randn(1, 2, 128, 64, generator=torch.Generator().manual_seed(5)).exp()
    assert plain.initial_state is not None
    return plain.with_(
        initial_state=plain.initial_state * wide,
        cotangents={**plain.cotangents, "state": plain.cotangents["state"] * wide},
    )


def gate_gradient(problem: Problem, kept: torch.dtype, factor: float = 1.0) -> Tensor:
    """Gradient [1, 1, H, K] of the log gate: q dq - k dk + S dS, with states S and their cotangents in the format `kept`."""
    q, k, v = (problem.tensors[n][:, 0].double() for n in "qkv")
    do = problem.cotangents["o"][:, 0].double()
    assert problem.initial_state is not None
    before, after = (x.to(kept).double() for x in (problem.initial_state, problem.cotangents["state"]))
    scale = 128**-0.5 if problem.scale is None else problem.scale
    weight = scale * (v * do).sum(-1, keepdim=True)
    dq = scale * (before @ do[..., None])[..., 0] + k * weight
    dk = (after @ v[..., None])[..., 0] + q * weight
    last = before + k[..., None] * v[..., None, :]
    return (q * dq - k * dk + factor * (last * after).sum(-1)).float()[:, None]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_states_in_16_bits_are_within_the_budget_and_mistakes_are_not(dtype: str) -> None:
    by, problem = Judge(GLA, "cpu"), one_token(dtype)
    answer, kept = by.answer(problem), problem.tensors["q"].dtype
    assert torch.equal(gate_gradient(problem, torch.float64), answer.reference["dg"].float())
    stored, single = (by.score(answer, "dg", gate_gradient(problem, fmt), dtype) for fmt in (kept, torch.float32))
    assert (stored.outcome, single.outcome) == ("pass", "pass")
    assert single.share < stored.share
    assert by.score(answer, "dg", gate_gradient(problem, kept, 1.01), dtype).outcome == "reject"
