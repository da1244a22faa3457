"""How far filters may reach where errors are shared: against realisations, against sums written out, and against faults."""

from functools import cache

import pytest
import torch
from torch import Tensor

from linverify import analytic, budget, draw, filtering, registry, rule
from linverify.analytic import Analysis
from linverify.case import Case
from linverify.dtype import format_of
from linverify.ensemble import Member
from linverify.fingerprinting import built
from linverify.judge import Judge
from linverify.recipe import storage
from linverify.score import Answer
from linverify.screening import Faced, Given, beside, faced
from linverify.statistics import CHANCE, FILTERS, statistics
from tests.kinds import answered
from tests.scripts import load

NAMES = ("linear_attention", "simple_gla", "gla", "delta_rule", "gated_delta_rule", "kda", "rwkv7", "mamba2")
PRECISIONS = ("bf16", "fp16", "tf32", "fp32")


@cache
def posed(name: str, precision: str) -> tuple[Judge, Answer, Analysis, list[Member]]:
    by, answer = answered(name, precision, T=100, K=32, V=24, gate="production")
    known = analytic.analysis(answer.recurrence, answer.reference, precision)
    assert known is not None
    return by, answer, known, [*by._growing(answer, precision, 0)][-1]


def reached(known: Analysis, result: str, sigma: Tensor, ref: Tensor) -> dict[str, float]:
    return filtering.reached(sigma[None], ref[None], {0: lambda y: known.sums(result, y)}).get(0, {})


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_filters_reach_no_further_than_those_of_realisations(name: str, precision: str) -> None:
    by, answer, known, members = posed(name, precision)
    served = 0
    for result, variance in known.variances.items():
        axes = by.axes(result)
        ref, floor = (
            axes.view(answer.reference[result]),
            budget.output_variance(axes.view(answer.reference[result]), storage(precision)),
        )
        reach = reached(known, result, (axes.view(variance) + floor).sqrt(), ref)
        served += bool(reach)
        able = [m for m in members if result in m.finite]
        sigma, others, _ = budget.scale(able, lambda errors, n=result: errors[n], axes, floor)
        drawn = statistics(others, sigma, ref, 0.0)
        for k, x in reach.items():
            # what the screen accepts, at its line, is what realisations accept at theirs
            assert analytic.LINE * x <= rule.GENERIC.line * max(CHANCE[k], *(d[k] for d in drawn)), (result, k)
    assert served >= 2


def planted(f: Faced, shape: str) -> Tensor:
    """An error that one filter sees best: along the result, in one row, one column, or one head."""
    size = f.ref.square().sum({"row": 2, "column": 1, "head": (1, 2)}[shape], keepdim=True)
    return torch.where(size == size.amax((0, 1, 2), keepdim=True), f.ref, 0.0)


@pytest.mark.parametrize("share", [1.02, 1.5])
@pytest.mark.parametrize("shape", ["row", "column", "head"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_what_realisations_call_wrong_is_not_settled(name: str, precision: str, shape: str, share: float) -> None:
    by, answer, known, members = posed(name, precision)
    fmt, bias = storage(precision), budget.bias_for(precision, 100)
    for result, variance in known.variances.items():
        axes = by.axes(result)
        ref = axes.view(answer.reference[result])
        error, size = planted(faced({result: Given(ref, ref, fmt)}, bias)[result], shape), 0.0
        able, step = [m for m in members if result in m.finite], 1e-3
        for _ in range(6):  # the share is a line in the size but for what the filters forgive
            size += step
            f = faced({result: Given(ref + size * error, ref, fmt)}, bias)[result]
            worst = budget.measured(f.error, f.ref, able, result, axes, f.floor, fmt, bias)[0] / rule.GENERIC.line
            if abs(worst / share - 1) < 1e-3:
                break
            step = size * (share / worst - 1) if worst > 0 else size
        assert worst >= 1.0, result
        answer.rounded[precision] = frozenset(n for n, v in known.variances.items() if bool((v > 0).any()))
        leans = {result: by._leans(answer, result, precision)}
        variances = {result: axes.view(variance)}
        found = beside({result: f}, variances, leans, known.sums, analytic.LINE)[result]
        assert found[0] > analytic.LINE, result


def test_the_sums_of_two_tokens_by_hand() -> None:
    case = Case("simple_gla", 1, 2, 1, 3, 2, dtype="bf16", gate="mild", cotangent="o", scale="one", seed=0)
    operator = registry.operator("simple_gla")
    answer = Judge(operator, "cpu").answer(draw.problem(case, operator))
    q, k, v, g = (answer.problem.tensors[n][0, :, 0].double() for n in "qkvg")
    do = answer.problem.cotangents["o"][0, :, 0].double()
    known = analytic.analysis(answer.recurrence, answer.reference, "bf16")
    assert known is not None
    unit, generator = known.unit, torch.Generator().manual_seed(4)
    y, x = (torch.randn(2, n, generator=generator, dtype=torch.float64) for n in (2, 3))

    def rows(result: str, weights: Tensor) -> Tensor:
        found = known.sums(result, weights[None])
        assert found is not None
        assert torch.allclose(found.heads, found.rows.sum(1))
        assert not bool(found.columns.any())
        return found.rows[0]

    decay = torch.stack([torch.ones(2, dtype=torch.float64), torch.stack([g[1].exp(), g[0] * 0 + 1])])
    seen = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64) * decay.reshape(2, 2)
    score, weight = (q @ k.T * seen).square(), (do @ v.T).square()
    assert torch.allclose(rows("o", y), unit * (score * (y @ v.T).square()).sum(1))
    assert torch.allclose(rows("dv", y), unit * (score * (do @ y.T).square()).sum(0))
    assert torch.allclose(rows("dq", x), unit * (weight * (x @ k.T * seen).square()).sum(1))
    assert torch.allclose(rows("dk", x), unit * (weight * (q @ x.T * seen).square()).sum(0))
    assert known.sums("dg", torch.ones(1, 2, 1, dtype=torch.float64)) is None


@pytest.mark.parametrize(("name", "columns"), [("simple_gla", True), ("gla", False)])
def test_a_state_shares_what_its_rounded_operand_lost(name: str, columns: bool) -> None:
    # values are rounded with a decay that all channels of a key share, keys with one of each channel: drawn here, and summed
    case = Case(name, 1, 40, 1, 6, 5, dtype="bf16", gate="mild", state="normal", final_state=True, seed=5)
    operator = registry.operator(name)
    answer = Judge(operator, "cpu").answer(draw.problem(case, operator))
    known, rows = analytic.analysis(answer.recurrence, answer.reference, "bf16"), answer.recurrence.rows
    assert known is not None
    assert rows.log_decay is not None
    key = rows.k * (rows.log_decay.sum(1, keepdim=True) - rows.log_decay.cumsum(1)).exp()
    y = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found = known.sums("state", y)
    assert found is not None
    one = known.unit * torch.einsum("tk,tc,kc->tk" if not columns else "tk,tc,kc->tc", key[0], rows.v[0], y[0]).square()
    assert torch.allclose(found.columns[0] if columns else found.rows[0], one.sum(0))
    assert not bool((found.rows if columns else found.columns).any())
    assert torch.allclose(found.heads[0], one.sum())


def test_it_settles_what_filters_held_up() -> None:
    case = Case(
        "simple_gla",
        1,
        192,
        2,
        64,
        64,
        dtype="bf16",
        gate="production",
        state="normal",
        final_state=True,
        cotangent="both",
    )
    operator = registry.operator("simple_gla")
    by, problem = Judge(operator, "cpu"), draw.problem(case, operator)
    answer = by.answer(problem)
    results = load("judge_cost").kernel_results(answer, built("native,C=64", "bf16", "bf16"))
    left = {n for n, score in by._screened(answer, results, "bf16", None).items() if isinstance(score, Faced)}
    known = answer.variances["bf16"]
    given = {
        n: Given(by.axes(n).view(v), by.axes(n).view(answer.reference[n]), format_of(v.dtype))
        for n, v in results.items()
    }
    every = faced(given, budget.bias_for("bf16", 192))
    leans = {n: by._leans(answer, n, "bf16") for n in every}
    alone = beside(every, {n: by.axes(n).view(known[n]) for n in every}, leans, line=analytic.LINE)
    held = {n for n, (share, which, _) in alone.items() if share > analytic.LINE and which in FILTERS}
    assert len(held - left) >= 3
    # and what it settles, realisations call right
    for n in held - left:
        f, members = every[n], [*by._growing(answer, "bf16", 0)][-1]
        ratio = budget.measured(f.error, f.ref, members, n, by.axes(n), f.floor, f.fmt, f.bias)[0]
        assert ratio < rule.GENERIC.near, n
