"""Long sums token by token in float32: a state that is rounded at every token errs like a walk of as many steps.

Rows beyond 512 tokens are not emulated token by token, and a sum over chunks alone takes fewer steps.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linverify import draw, emulated, registry
from linverify.case import parse_case
from linverify.dtype import FP32
from linverify.emulation import Emulation
from linverify.judge import Judge
from linverify.recipe import uniform
from tests.kinds import withhold

U = FP32.unit_roundoff
CASE = "causal_product/B1.T1000.H1.K16.V12/fp32/regime=positive/cotangent=o/seed={}"
Keep = Callable[[Tensor], Tensor]


def product(a: Tensor, b: Tensor, c: Tensor, keep: Keep) -> Tensor:
    """Sum of (a_t . b_j) c_j over j up to t, [B, H, T, .], by a running state."""
    state, out = torch.zeros(*a.shape[:2], a.shape[3], c.shape[3]), []
    for t in range(a.shape[2]):
        state = keep(state + b[:, :, t, :, None] * c[:, :, t, None])
        out.append((a[:, :, t, :, None] * state).sum(2))
    return torch.stack(out, 2)


def outcomes(seed: int, keep: Keep) -> set[str]:
    operator = registry.operator("causal_product")
    problem, by = draw.problem(parse_case(CASE.format(seed)), operator), Judge(operator, "cpu")
    q, k, v = (problem.tensors[n] for n in "QKV")
    do = problem.cotangents["o"]
    back = [x.flip(2) for x in (q, k, v, do)]
    found = {
        "o": product(q, k, v, keep),
        "dQ": product(do, v, k, keep),
        "dK": product(back[2], back[3], back[0], keep).flip(2),
        "dV": product(back[1], back[0], back[3], keep).flip(2),
    }
    return {score.outcome for _, score in by.scores(by.answer(problem), found, "fp32")}


def whole(state: Tensor) -> Tensor:
    return state


def of_21_bits(state: Tensor) -> Tensor:
    """Rounded to nearest with 21 bits of mantissa: each step errs eight times as far (Veltkamp's splitting)."""
    large = state * (2**3 + 1)
    return large - (large - state)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_state_that_is_kept_in_float32_is_no_fault(seed: int) -> None:
    assert outcomes(seed, whole) == {"pass"}


def test_it_would_be_one_if_a_state_erred_once_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    withhold(monkeypatch, emulated.STEPPED)
    assert "reject" in outcomes(1, whole)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_state_of_21_bits_is_one(seed: int) -> None:
    assert "reject" in outcomes(seed, of_21_bits)


def test_as_many_roundings_as_tokens() -> None:
    state = torch.full((200, 200), 3.0, dtype=torch.float64, requires_grad=True)
    mode = Emulation(uniform("fp32", 16, FP32), torch.Generator().manual_seed(1))
    with mode:
        found = mode.stepped(state, 16)
        (back,) = torch.autograd.grad(found, state, torch.full_like(state, 2.0))
    # 0.4247 of a unit roundoff each (rounding to nearest of log-uniform numbers), over 16 steps; 40 000 of them
    for value, size in ((found.detach(), 3.0), (back, 2.0)):
        assert float((value - size).std()) == pytest.approx(0.4247 * 4 * U * size, rel=0.02)
        assert abs(float((value - size).mean())) < 5 * 0.4247 * 4 * U * size / 200
    plain = Emulation(uniform("fp32", 16, FP32), None)
    with plain:
        assert plain.stepped(state, 16) is state


def test_a_running_sum_errs_as_a_random_walk() -> None:
    """Positive terms, 4000 of them: the walk's size, and no drift along the sum."""
    generator = torch.Generator().manual_seed(2)
    state, exact = torch.zeros(5000), torch.zeros(5000, dtype=torch.float64)
    energy = torch.zeros_like(exact)
    for _ in range(4000):
        term = torch.rand(5000, generator=generator)
        state, exact = state + term, exact + term
        energy += exact.square()
    error = (state - exact) / (0.4247 * U * energy.sqrt())
    assert float(error.square().mean().sqrt()) == pytest.approx(1.0, rel=0.1)
    assert abs(float(error.mean())) < 0.1


def test_long_rows_ask_for_it_where_float32_is_all_that_errs() -> None:
    operator = registry.operator("causal_product")
    by = Judge(operator, "cpu")
    for length, precision, asked in ((512, "fp32", False), (513, "fp32", True), (513, "tf32", False)):
        case = f"causal_product/B1.T{length}.H1.K4.V4/fp32/cotangent=o/seed=1"
        question = by.answer(draw.problem(parse_case(case), operator)).question
        forms = [form for form, _ in emulated.stacks(question, precision)]
        assert (emulated.STEPPED in forms) is asked
        assert ("recurrent" in forms) is (length <= 512)
