"""Operators that read out of their recurrence, or state their forms: oracles, forms, emulation."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.dtype import BF16, FP32, FP64
from linverify.emulated import _run, stacks
from linverify.emulation import Emulation
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.recipe import uniform
from linverify.reference import highprecision, solve, stated, stepwise
from tests.kinds import OTHERS, suited
from tests.slopes import assert_gradients_are_slopes

CPU = torch.device("cpu")


def ask(name: str, T: int, **changes: object) -> tuple[Problem, Operator]:
    operator = registry.operator(name)
    gate = "mild" if operator.gated else "none"
    case = Case(
        name, 2, T, 2, 5, 4, dtype="fp64", gate=gate, state="normal", final_state=True, cotangent="both", seed=T
    )
    return draw.problem(suited(case.with_(**changes), operator), operator), operator


def oracles(problem: Problem, operator: Operator) -> list[dict[str, Tensor]]:
    """Every float64 oracle beside `solve`."""
    if operator.forms:
        return [stated(problem, operator, form=f) for f in operator.form_names[1:]]
    return [stepwise(problem, operator)]


class Counting(Emulation):
    """Counts the products whose operands are rounded."""

    products = 0

    def product(self, func: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        self.products += 1
        return super().product(func, a, b)


def yardsticks(results: Mapping[str, Tensor]) -> dict[str, float]:
    """What a result's error is relative to: gradients are sums that cancel, so one yardstick serves all of them."""
    every = max((float(t.abs().max()) for n, t in results.items() if n[0] == "d"), default=1.0)
    return {n: every if n[0] == "d" else float(t.abs().max()) for n, t in results.items()}


def roundings(problem: Problem) -> int:
    """Unit roundoffs that two float64 computations may differ by: a multiple of the longest sums in them."""
    return 64 * (max(t.shape[1] for t in problem.tensors.values() if t.dim() > 2) + 9)


@pytest.mark.parametrize("name", OTHERS)
def test_float64_oracles_agree(name: str) -> None:
    for T in (1, 2, 17, 40):
        p, operator = ask(name, T)
        expected = solve(p, operator)
        sizes = yardsticks(expected)
        for found in oracles(p, operator):
            assert list(found) == list(expected)
            for n, t in found.items():
                off = float((t - expected[n]).abs().max()) / (sizes[n] or 1.0)
                assert off < roundings(p) * FP64.unit_roundoff, (T, n, off)


@pytest.mark.parametrize("name", [n for n in OTHERS if registry.operator(n).ways])
def test_other_ways_are_the_operator(name: str) -> None:
    """Beyond a chunk of 64 tokens, by the budget of float64."""
    p, operator = ask(name, 70)
    judge = Judge(operator, "cpu")
    answer = judge.answer(p)
    for way in operator.ways:
        assert {n: s.outcome for n, s in judge.scores(answer, stated(p, operator, form=way), "fp64")} == dict.fromkeys(
            answer.reference, "pass"
        )


@pytest.mark.parametrize("name", OTHERS)
def test_two_precisions_agree_and_certify_float64(name: str) -> None:
    p, operator = ask(name, 6, B=1, K=3, V=2)
    fifty, eighty, double = highprecision(p, operator), highprecision(p, operator, digits=80), solve(p, operator)
    assert set(fifty) == set(eighty) == set(double)
    sizes = yardsticks(double)
    for n, exact in eighty.items():
        assert float(max(abs(x) for x in exact.flat)) > 0, n
        assert max(abs(x) for x in (fifty[n] - exact).flat) < mpmath.mpf("1e-40") * sizes[n], n
        off = max(abs(x) for x in (np.vectorize(mpmath.mpf, otypes=[object])(double[n].numpy()) - exact).flat)
        assert off < roundings(p) * FP64.unit_roundoff * sizes[n], (n, float(off / sizes[n]))


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_are_slopes(name: str) -> None:
    p, operator = ask(name, 5, B=1, K=3, V=2)
    assert_gradients_are_slopes(p, operator, low=1)


@pytest.mark.parametrize("name", OTHERS)
def test_built_in_forms_are_within_the_budget_in_every_dtype(name: str) -> None:
    for dtype in ("fp64", "fp32", "bf16"):
        p, operator = ask(name, 21, dtype=dtype)
        judge = Judge(operator, "cpu")
        answer = judge.answer(p)
        for form in operator.form_names:
            function = getattr(importlib.import_module(f"linverify.impls.torch_{form}"), name)
            steps = {i.name: "".join(i.axes).find("S") for i in operator.inputs}
            leaves = {n: t.clone().requires_grad_(n in p.wrt) for n, t in p.tensors.items()}
            given = {n: t.flatten(steps[n] - 1, steps[n]) if steps[n] > 0 else t for n, t in leaves.items()}
            if p.initial_state is not None:
                given["initial_state"] = leaves["initial_state"] = p.initial_state.clone().requires_grad_()
                given["output_final_state"] = True
            outs = dict(zip(("o", "state"), function(**given, scale=p.scale), strict=True))
            assert outs["o"].dtype == p.tensors[operator.value_name].dtype
            wanted, upstream = [leaves[n] for n in p.wrt], list(p.cotangents.values())
            grads = torch.autograd.grad([outs[n] for n in p.cotangents], wanted, upstream, allow_unused=True)
            given_out = {n: t.detach() for n, t in outs.items() if t is not None}
            found = {**given_out, **{f"d{n}": g for n, g in zip(p.wrt, grads, strict=True) if g is not None}}
            for n, t in found.items():
                score = judge.score(answer, n, t, dtype)
                assert score.outcome == "pass", (dtype, form, n, score.share)


@pytest.mark.parametrize("name", OTHERS)
def test_emulation_is_the_mathematics_without_rounding_and_noisy_with_it(name: str) -> None:
    p, operator = ask(name, 19, dtype="bf16")
    judge = Judge(operator, "cpu")
    answer = judge.answer(p)
    sizes = yardsticks(answer.reference)
    forms = {form for form, _ in stacks(answer.question, "bf16")}
    for form in forms:
        silent = _run(answer.question, form, None, torch.float64)
        fine, coarse = (Counting(uniform("", 0, fmt), torch.Generator().manual_seed(1)) for fmt in (FP32, BF16))
        single, half = (_run(answer.question, form, mode, torch.float64) for mode in (fine, coarse))
        off = [
            {n: float((t - answer.reference[n]).abs().max()) / (sizes[n] or 1.0) for n, t in found.items()}
            for found in (silent, single, half)
        ]
        assert max(off[0].values()) < roundings(p) * FP64.unit_roundoff
        # as large as real float32 errors, which an ill-conditioned operator's are
        real = _run(answer.question, form, Emulation(uniform("", 0, FP32), None), torch.float32)
        worst = max(float((t - answer.reference[n]).abs().max()) / (sizes[n] or 1.0) for n, t in real.items())
        assert 0 < max(off[1].values()) < max(roundings(p) * FP32.unit_roundoff, 16 * worst)
        if coarse.products:
            assert max(off[2].values()) > max(off[1].values())
        else:  # what has no product keeps its operands in registers
            assert all(torch.equal(single[n], half[n]) for n in single)


@pytest.mark.parametrize("name", OTHERS)
def test_realisations_drawn_at_once_are_those_drawn_one_by_one(name: str) -> None:
    p, operator = ask(name, 9, dtype="fp32", B=1)
    judge = Judge(operator, "cpu")
    answer = judge.answer(p)
    recipe, count = uniform("", 0, FP32), 32
    for form in operator.form_names if operator.forms else ["recurrent"]:
        generator = torch.Generator().manual_seed(1)
        one_by_one = [_run(answer.question, form, Emulation(recipe, generator), torch.float64) for _ in range(count)]
        at_once = _run(answer.question, form, Emulation(recipe, generator), torch.float64, count)
        assert list(at_once) == list(one_by_one[0])
        for n, found in at_once.items():
            errors, others = found - answer.reference[n], torch.stack([r[n] for r in one_by_one]) - answer.reference[n]
            assert 0.5 < float(errors.square().mean().sqrt() / others.square().mean().sqrt()) < 2, (form, n)
            flat = errors.flatten(1)
            assert len({tuple(row.tolist()) for row in flat}) == count, (form, n)
            # copies that shared a rounding would have a mean as large as they are
            assert float(flat.mean(0).norm() / flat.norm(dim=1).mean()) < 0.7, (form, n)


def test_an_operation_without_an_error_model_is_an_error() -> None:
    x = torch.randn(3, 4)
    with Emulation(uniform("", 0, FP32), None), pytest.raises(NotImplementedError, match=r"aten\._softmax"):
        torch.softmax(x, -1)


def test_what_is_representable_is_not_rounded() -> None:
    x = torch.randn(1000).bfloat16().double()
    mode = Emulation(uniform("", 0, BF16), torch.Generator().manual_seed(2))
    assert torch.equal(mode.rounded(x), x)
    y = torch.randn(20000, dtype=torch.float64)
    drawn, nearest = mode.rounded(y) - y, Emulation(uniform("", 0, BF16), None).rounded(y) - y
    assert float((drawn / y).square().mean().sqrt() / (nearest / y).square().mean().sqrt()) == pytest.approx(
        1, abs=0.05
    )
    assert abs(float((drawn / y).mean())) < 0.05 * BF16.unit_roundoff


def test_an_operator_states_either_a_recurrence_or_forms() -> None:
    gla = registry.operator("gla")
    with pytest.raises(ValueError, match="either the recurrence"):
        replace(gla, canonical=None)
    with pytest.raises(ValueError, match="among naive"):
        replace(registry.operator("softmax_attention"), forms={"tiled": lambda x, _, __: x})
    with pytest.raises(TypeError, match="states its forms"):
        _ = registry.operator("softmax_attention").recurrence
