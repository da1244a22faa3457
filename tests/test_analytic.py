"""The analytic variance against the realisations that it saves, and against sums written out by hand."""

from functools import cache

import pytest
import torch

from linverify import analytic, budget, draw, registry
from linverify.analytic_system import pulled_through
from linverify.case import Case
from linverify.emulated import emulates
from linverify.judge import Judge
from linverify.recipe import storage
from linverify.score import Answer
from tests.kinds import answered
from tests.scripts import load

PLAIN = [n for n, o in registry.operators().items() if o.canonical is not None and not emulates(o)]


@cache
def asked(name: str, precision: str) -> tuple[Judge, Answer]:
    return answered(name, precision, T=50, K=16, V=12, gate="mild")


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "fp32"])
def test_it_is_of_the_size_of_the_realisations_and_seldom_above(name: str, precision: str) -> None:
    by, answer = asked(name, precision)
    found = analytic.analysis(answer.recurrence, answer.reference, precision)
    assert found is not None
    known = found.variances
    assert set(known) == set(answer.reference)
    # two realisations scatter by themselves, most in IEEE arithmetic: what a sum of gates loses there, a whole row shares
    seeds = budget.seeds()[: 3 if precision == "fp32" else 1]
    drawn = [[*by._growing(answer, precision, seed)][-1] for seed in seeds]
    for result, variance in known.items():
        axes = by.axes(result)
        floor = budget.output_variance(axes.view(answer.reference[result]), storage(precision))
        scales = []
        for members in drawn:
            able = [m for m in members if result in m.finite]
            scales.append(budget.scale(able, lambda errors, n=result: errors[n], axes, floor)[0])
        scale = torch.stack(scales).square().mean(0).sqrt()
        ratio = ((axes.view(variance) + floor).sqrt() / scale).flatten()
        assert 0.005 < float(ratio.median()) < 1.3, result
        assert float(ratio.quantile(0.95)) < 2.0, result


def test_two_tokens_of_a_scalar_gate_by_hand() -> None:
    case = Case("simple_gla", 1, 2, 1, 3, 2, dtype="bf16", gate="mild", cotangent="o", scale="one", seed=0)
    operator = registry.operator("simple_gla")
    by = Judge(operator, "cpu")
    answer = by.answer(draw.problem(case, operator))
    q, k, v, g = (answer.problem.tensors[n][0, :, 0].double() for n in "qkvg")
    known = analytic.analysis(answer.recurrence, answer.reference, "bf16")
    assert known is not None
    found = known.variances
    unit = analytic.units(answer.recurrence, "bf16")

    score = torch.stack([q[1] @ k[0] * g[1].exp(), q[1] @ k[1]])
    assert torch.allclose(found["o"][0, 1, 0], unit * (score.square() @ v.square()))
    do = answer.problem.cotangents["o"][0, :, 0].double()
    into_v = unit * ((q[0] @ k[0]) ** 2 * do[0].square() + score[0] ** 2 * do[1].square())
    assert torch.allclose(found["dv"][0, 0, 0], into_v)
    into_k = unit * ((v[0] @ do[0]) ** 2 * q[0].square() + (v[0] @ do[1] * g[1].exp()) ** 2 * q[1].square())
    assert torch.allclose(found["dk"][0, 0, 0], into_k)


@pytest.mark.parametrize("name", ["rwkv7", "dplr", "iplr"])
def test_the_cotangent_of_what_a_low_rank_term_read_is_that_of_a_write_with_b(name: str) -> None:
    # what a reads is written with b: the gradient of a further value that is written with b is the cotangent
    operator = registry.operator(name)
    gate = "mild" if operator.gated else "none"
    case = Case(
        name, 1, 37, 1, 6, 5, dtype="fp64", gate=gate, state="normal", final_state=True, cotangent="both", seed=3
    )
    question = Judge(operator, "cpu").answer(draw.problem(case, operator)).recurrence
    rows, do, dstate = question.rows, question.do, question.dstate
    assert rows.b is not None
    assert do is not None
    found = pulled_through(rows, question.scale * do, dstate)
    state, read, b = rows.state.detach(), [], rows.b.detach()
    value = torch.zeros_like(rows.v, requires_grad=True)
    for t in range(rows.q.shape[1]):
        kept = state if rows.log_decay is None else rows.log_decay[:, t, :, None].detach().exp() * state
        seen = (rows.a[:, t, None].detach() @ (state if rows.undecayed else kept))[:, 0] + value[:, t]
        state = kept + b[:, t, :, None] * seen[:, None] + (rows.k[:, t, :, None] * rows.v[:, t, None]).detach()
        read.append((rows.q[:, t, None].detach() @ state)[:, 0])
    loss = (question.scale * torch.stack(read, 1) * do).sum() + (state * dstate).sum()
    (expected,) = torch.autograd.grad(loss, value)
    assert torch.allclose(found, expected, rtol=1e-10)


def test_it_settles_results_of_a_kernel_that_rounds_its_operands() -> None:
    kernel = load("subtle_faults").kernel
    case = Case("gla", 1, 65, 2, 32, 24, dtype="bf16", gate="mild", state="normal", final_state=True, cotangent="both")
    operator = registry.operator("gla")
    by, problem = Judge(operator, "cpu"), draw.problem(case, operator)
    answer = by.answer(problem)
    for n, value in kernel(problem, "gla", "bf16").items():
        assert by.score(answer, n, value, "bf16").outcome == "pass", n
    assert by.counts["analytic"] >= 6
    wrong = kernel(problem, "gla", "bf16", "decay of k one token late")
    assert by.score(answer, "o", wrong["o"], "bf16").outcome == "reject"


def test_a_class_without_a_format_is_left_to_the_realisations() -> None:
    _, answer = asked("gla", "bf16")
    assert analytic.analysis(answer.recurrence, answer.reference, "fp64") is None
