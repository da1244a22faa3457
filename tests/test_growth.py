"""Growth far out: long sequences in segments give the errors that the whole gives, and a drift of the state is named."""

from functools import cache

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.ensemble import simulated
from linverify.fingerprinting import built
from linverify.growth import Rung, far_rung, growth, rung
from linverify.judge import Judge
from linverify.problem import Problem

LENGTHS = (512, 1024, 2048, 4096, 8192)


@cache
def drawn(name: str, T: int, gate: str = "none") -> Problem:
    case = Case(name, 1, T, 1, 8, 8, dtype="bf16", gate=gate, state="normal", final_state=True, seed=4)
    return draw.problem(case, registry.operator(name))


@pytest.mark.parametrize(
    ("name", "gate"), [("linear_attention", "none"), ("gla", "mild"), ("gated_delta_rule", "mild")]
)
@pytest.mark.parametrize("recipe", ["native,C=64,carry=native", "fp32,recurrent"])
def test_in_segments_errors_are_those_of_the_whole(name: str, gate: str, recipe: str) -> None:
    operator, posed = registry.operator(name), drawn(name, 300, gate)
    answer = Judge(operator, "cpu").answer(posed)
    kernel = simulated(answer.recurrence, built("native,C=16", "bf16", "bf16"), ())[0]
    results = {n: kernel[n].to(torch.bfloat16 if n == "o" else torch.float32) for n in ("o", "state")}
    results["state"][0, 0, 0] *= 1.01
    whole = rung(operator, answer, results, built(recipe, "bf16", "bf16"), 300)
    parts = far_rung(operator, posed, results, built(recipe, "bf16", "bf16"), "cpu", segment=128)
    assert parts.T == 300
    assert parts.target == pytest.approx(whole.target, rel=1e-9)
    assert parts.recipe == pytest.approx(whole.recipe, rel=1e-3)
    assert far_rung(operator, posed, results, None, "cpu").recipe == {}


def carried(posed: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """Linear attention in chunks of 64 whose state is kept in this dtype."""
    assert posed.initial_state is not None
    q, k, v = (posed.tensors[n][0, :, 0].float() for n in "qkv")
    state, o, mask = posed.initial_state[0, 0].float(), [], torch.ones(64, 64).tril()
    for i in range(0, len(q), 64):
        some = slice(i, i + 64)
        o.append((q[some] @ state + (q[some] @ k[some].T * mask[: len(q[some]), : len(q[some])]) @ v[some]) * 8**-0.5)
        state = (state + k[some].T @ v[some]).to(dtype).float()
    return {"o": torch.cat(o)[None, :, None].bfloat16(), "state": state[None, None]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_state_in_sixteen_bits_is_named_and_one_in_float32_is_not(dtype: torch.dtype) -> None:
    operator, recipe = registry.operator("linear_attention"), built("native,C=64", "bf16", "bf16")
    found: list[Rung] = []
    for T in LENGTHS:
        posed = drawn("linear_attention", T)
        told = recipe if LENGTHS[-1] > T else None  # the law of the recipe is that of the lengths where it was run
        found.append(far_rung(operator, posed, carried(posed, dtype), told, "cpu"))
    law = growth(found, "state", "bf16")
    assert law is not None
    assert law.lengths == LENGTHS
    if dtype is torch.float32:
        assert law.safe_up_to is None
        assert law.errors[-1] < 1e-5
    else:
        assert law.low > 0.2
        assert law.safe_up_to is not None
        assert f"state safe up to T = {law.safe_up_to}" in law.sentence
        assert law.slope - law.predicted < 0.125  # both walk at random, one of them 10^4 times as far
        assert "times smaller" in law.sentence


def test_a_law_needs_the_recipe_at_enough_lengths() -> None:
    rungs = [Rung(2**i, {"o": 1e-3 * 2 ** (i / 2)}, {"o": 1e-3} if i < 8 else {}) for i in range(5, 12)]
    assert growth(rungs, "o", "bf16") is None
    assert growth([Rung(16, {"o": 1e-3}, {"o": 1e-3}), *rungs], "o", "bf16") is not None
