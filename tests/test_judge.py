"""The judge: lets real kernels' results pass, rejects planted changes of them, and decides near things as it says.

The results come from an H100 (tests/data/README.md). The one that must be rejected among them is the gate gradient of the
delta family under weak decay in bfloat16, whose error no rounding of a usual recipe explains.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from linverify import budget, draw, registry
from linverify.case import Case
from linverify.dtype import FP16, FP32
from linverify.ensemble import pooled, realise
from linverify.judge import Judge
from linverify.recipe import uniform
from linverify.reference import stepwise
from linverify.rule import GENERIC
from linverify.score import Answer, Unjudgeable
from linverify.screening import Faced
from tests.scripts import load

DATA = Path(__file__).parent / "data"
OPERATORS = {
    "none": "linear_attention",
    "scalar": "simple_gla",
    "diag": "gla",
    "diagrec": "gla",
    "delta": "delta_rule",
    "gdelta": "gated_delta_rule",
    "kda": "kda",
}


CASES = {c.name: c for c in load("captured").captured(DATA, prefix="h100_")}


@cache
def real(case: str) -> tuple[Judge, Answer, dict[str, Tensor], str]:
    """A judge, the reference, the kernel's results by name, and the precision class."""
    found = CASES[case]
    on_cpu = Judge(found.operator, "cpu")
    return on_cpu, on_cpu.answer(found.problem), found.results, found.precision


def weak_gate_gradient(case: str, result: str) -> bool:
    kernel, dtype, *_, regime = case.split("|")
    return result == "dg" and kernel in ("gdelta", "kda") and dtype != "float32" and regime == "nodecay"


def test_the_data_hold_what_the_tests_need() -> None:
    assert {c.split("|")[0] for c in CASES} == set(OPERATORS)
    assert {real(c)[3] for c in CASES} == {"bf16", "fp16", "tf32", "fp32"}


@pytest.mark.parametrize("case", CASES)
def test_real_kernels_pass(case: str) -> None:
    by, answer, results, precision = real(case)
    assert set(results) == set(answer.reference)
    for name, value in results.items():
        score = by.score(answer, name, value, precision)
        assert score.share > 0
        if not weak_gate_gradient(case, name):
            assert score.outcome == "pass", (name, score.share, score.statistic)
            assert score.share < 1


@pytest.mark.parametrize("kernel", ["gdelta", "kda"])
def test_the_gate_gradient_under_weak_decay_is_rejected_in_bf16(kernel: str) -> None:
    by, answer, results, precision = real(f"{kernel}|bfloat16|33|64|64|nodecay")
    score = by.score(answer, "dg", results["dg"], precision)
    assert score.outcome == "reject"
    # how far beyond the line is no matter of one draw
    given = by._screened(answer, {"dg": results["dg"]}, precision, None)["dg"]
    assert isinstance(given, Faced)
    sets = []
    for seed in range(12):
        *_, members = by._growing(answer, precision, seed)
        sets.append([m.of("dg") for m in members if "dg" in m.train])
    shares = []
    for some in (sets[:4], sets[4:8], sets[8:]):
        with_these = (pooled(some), "dg", by.axes("dg"), given.floor, given.fmt, given.bias)
        shares.append(budget.measured(given.error, given.ref, *with_these)[0] / GENERIC.together)
    assert min(shares) > 1.2, shares
    # the others of the same case are as accurate as ever
    assert by.score(answer, "dk", results["dk"], precision).outcome == "pass"


def _changed(x: Tensor, index: object, value: Tensor | float) -> Tensor:
    y = x.clone()
    y[index] = value
    return y


def _times(x: Tensor, factor: float) -> Tensor:
    return (x.double() * factor).to(x.dtype)


def _largest_doubled(o: Tensor, _: Tensor) -> Tensor:
    y = o.clone()
    y.view(-1)[y.abs().argmax()] *= 2
    return y


Change = Callable[[Tensor, Tensor], Tensor]
CHANGES: dict[str, Change] = {
    "zeros": lambda o, _: torch.zeros_like(o),
    "a copy of v": lambda _, v: v.clone(),
    "one stale tile": lambda o, _: _changed(o, (0, slice(16, 32), 0, slice(16, 32)), o[0, :16, 0, 16:32]),
    "one element doubled": _largest_doubled,
    "all too large by 1 %": lambda o, _: _times(o, 1.01),
    "two rows of a head swapped": lambda o, _: _changed(o, (0, [3, 4], 1), o[0, [4, 3], 1]),
    "one element not a number": lambda o, _: _changed(o, (0, 32, 1, 63), float("nan")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", CASES)
def test_changed_results_are_rejected(case: str, change: str) -> None:
    by, answer, results, precision = real(case)
    value = CHANGES[change](results["o"], answer.problem.tensors["v"])
    assert not torch.equal(value, results["o"])
    assert by.score(answer, "o", value, precision).outcome == "reject"


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_without_the_scale_is_rejected(case: str) -> None:
    by, answer, results, precision = real(case)
    score = by.score(answer, "dq", _times(results["dq"], 8.0), precision)
    assert (score.outcome, score.share > 100) == ("reject", True)


@pytest.mark.parametrize("case", [c for c in CASES if real(c)[3] in ("fp16", "fp32")])
def test_a_last_token_off_by_one_percent_is_rejected(case: str) -> None:
    by, answer, results, precision = real(case)
    o = results["o"]
    value = _changed(o, (slice(None), -1), _times(o[:, -1], 1.01))
    assert by.score(answer, "o", value, precision).outcome == "reject"


# Decisions


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.0,), "pass"),
        ((2.4,), "more"),
        ((50.0,), "more"),
        ((2.4, 2.4), "pass"),
        ((3.1, 3.1), "reject"),
        ((2.4, 3.1), "more"),
        ((2.4, 3.1, 3.1), "more"),
        ((2.4, 3.1, 3.1, 3.1), "reject"),
        ((2.4, 2.4, 3.1, 2.4), "pass"),
        ((2.6, 2.6, 2.9, 2.9), "marginal"),
    ],
)
def test_how_many_seeds_decide(ratios: tuple[float, ...], expected: str) -> None:
    assert budget.settled(ratios) == expected


def small(name: str = "gla", dtype: str = "bf16", **changes: object) -> tuple[Judge, Answer]:
    operator = registry.operator(name)
    case = Case(name, 1, 20, 2, 8, 6, dtype=dtype, gate="mild" if operator.gated else "none", seed=1)
    by = Judge(operator, "cpu")
    return by, by.answer(draw.problem(case.with_(**changes), operator))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_result_rounded_once_is_screened(dtype: str) -> None:
    by, answer = small(dtype=dtype)
    o = answer.reference["o"].to(answer.problem.tensors["v"].dtype)
    score = by.score(answer, "o", o, dtype)
    assert (score.outcome, score.screened, by.counts) == ("pass", True, {"screened": 1, "analytic": 0, "realised": 0})
    assert not answer.members
    score = by.score(answer, "o", _changed(o, (0, 3, 1, 2), float("inf")), dtype)
    assert (score.outcome, score.screened) == ("reject", True)
    assert score.share > 100
    by.score(answer, "o", o * 1.5, dtype)
    assert by.counts == {"screened": 2, "analytic": 0, "realised": 1}
    assert by.seconds["reference"] > 0 < by.seconds["judge"]


def test_overflow_is_right_where_the_result_exceeds_the_format() -> None:
    by, answer = small("linear_attention", "fp16", scale="one")
    answer.reference["o"] = answer.reference["o"] * 1e6
    beyond = answer.reference["o"].abs() > FP16.largest
    assert bool(beyond.any())
    value = answer.reference["o"].half()
    assert torch.equal(torch.isinf(value), beyond)
    assert by.score(answer, "o", value, "fp16").outcome == "pass"
    # but not where it fits
    fitting = tuple(int(i) for i in (~beyond).nonzero()[0])
    assert by.score(answer, "o", _changed(value, fitting, float("inf")), "fp16").outcome == "reject"


def test_scores_do_not_depend_on_what_was_judged_before() -> None:
    (first, a), (second, b) = small(), small()
    second.score(b, "o", b.reference["o"].bfloat16() * 2, "bf16")
    o = (a.reference["o"] * 1.004).bfloat16()
    one, two = first.score(a, "o", o, "bf16"), second.score(b, "o", o, "bf16")
    assert not one.screened
    assert (one.share, one.statistic) == (two.share, two.statistic)
    assert torch.equal(one.sigma, two.sigma)


def test_one_set_of_realisations_serves_all_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate's gradient needs more of a realisation than the others do; drawn for it, they are not drawn again."""
    by, answer = small(T=40, final_state=True, cotangent="both")
    values = {
        n: (t * 1.006).to(torch.float32 if n in ("dg", "state") else torch.bfloat16)
        for n, t in answer.reference.items()
    }
    alone = {}
    for name, value in values.items():
        fresh, again = small(T=40, final_state=True, cotangent="both")
        alone[name] = fresh.score(again, name, value, "bf16")
    drawn: list[tuple[int, bool]] = []

    def realised(*given: object, gated: bool) -> object:
        generator = given[4]
        assert isinstance(generator, torch.Generator)
        drawn.append((generator.initial_seed(), gated))
        return realise(*given, gated=gated)

    monkeypatch.setattr("linverify.judge.realise", realised)
    found = dict(by.scores(answer, values, "bf16"))
    left = [n for n, s in found.items() if not s.screened]
    assert "dg" in left
    assert len(left) > 2
    assert len(set(drawn)) == len(drawn)
    assert all(gated for _, gated in drawn)
    assert {n: (s.share, s.statistic) for n, s in found.items()} == {
        n: (s.share, s.statistic) for n, s in alone.items()
    }
    drawn.clear()
    answer.members.clear()
    dict(by.scores(answer, {n: v for n, v in values.items() if n != "dg"}, "bf16"))
    assert drawn
    assert not any(gated for _, gated in drawn)


def test_precision_classes_are_strict_in_their_order() -> None:
    by, answer = small(dtype="fp64", T=40)
    o = (answer.reference["o"] * (1 + 2.0**-14)).float()
    scores = {c: by.score(answer, "o", o, c) for c in ("bf16", "fp16", "tf32", "fp32")}
    wide, half, cut, single = (float(s.sigma.median()) for s in scores.values())
    assert wide > 2 * half > 100 * single
    assert cut > 100 * single
    assert {c: s.outcome for c, s in scores.items()} == {
        "bf16": "pass",
        "fp16": "pass",
        "tf32": "pass",
        "fp32": "reject",
    }


def test_a_float64_result_is_held_to_float64() -> None:
    by, answer = small(dtype="fp64", T=40)
    o = stepwise(answer.problem, by.operator)["o"]
    assert by.score(answer, "o", o, "fp64").outcome == "pass"
    assert by.score(answer, "o", o.float().double(), "fp64").outcome == "reject"


def test_nothing_is_judged_where_no_kernel_of_the_recipe_stays_finite() -> None:
    """A state of 10^7 has no place in float16; an unknown kernel may keep it in TF32, which has the range of float32."""
    by, answer = small("linear_attention", "fp16")
    p = answer.problem
    huge = p.with_tensors(k=p.tensors["k"] * 512, v=p.tensors["v"] * 512, q=p.tensors["q"] / 4096)
    answer = by.answer(huge)
    o = (answer.reference["o"] * 1.01).half()
    assert bool(torch.isfinite(o).all())
    assert by.score(answer, "o", o, "fp16").outcome == "reject"
    narrow = uniform("all in fp16", 16, FP16)
    with pytest.raises(Unjudgeable, match=r"^o$"):
        by.score(answer, "o", o, "fp16", narrow)
    parts = [(answer, {"o": x}) for x in (o, answer.reference["o"].half())]
    with pytest.raises(Unjudgeable, match="relation"):
        by.relation(parts, lambda r: r[0]["o"] - r[1]["o"], "bthv", "fp16", narrow)


def test_gates_of_minus_infinity_have_a_reference() -> None:
    _, answer = small("gla", "fp32", gate="inf", cotangent="o")
    assert bool(torch.isinf(answer.problem.tensors["g"]).any())
    assert all(bool(torch.isfinite(t).all()) for t in answer.reference.values())
    assert set(answer.reference) == {"o", "dq", "dk", "dv", "dg"}


def test_the_reference_must_be_far_better_than_the_budget() -> None:
    sigma = torch.full((1, 2, 2), FP32.unit_roundoff)
    budget.certify(sigma * budget.CERTIFICATE / 2, sigma)
    with pytest.raises(ValueError, match="off by"):
        budget.certify(sigma * budget.CERTIFICATE * 2, sigma)
    # two float64 references of size one differ by a rounding, however small what is judged
    budget.certify(torch.full_like(sigma, 2.0**-52), sigma * 1e-20, [torch.ones(1)])
    with pytest.raises(ValueError, match="relation"):
        budget.certify(torch.full_like(sigma, 1e-12), sigma * 1e-20, [torch.ones(1)])


@pytest.mark.parametrize("operator", ["simple_gla", "gated_delta_rule"])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_kernel_may_round_the_scaled_query(operator: str, seed: int) -> None:
    case = Case(
        *(operator, 1, 65, 2, 32, 24),  # a scale of 32^-0.5: no power of two
        dtype="bf16",
        gate="production",  # o hangs on its own token: nothing averages the rounding away
        state="normal",
        final_state=True,
        cotangent="both",
        seed=seed,
    )
    problem = draw.problem(case, registry.operator(operator))
    judge = Judge(registry.operator(operator), "cpu")
    answer = judge.answer(problem)
    results = load("subtle_faults").kernel(problem, operator, "bf16")
    assert {n: judge.score(answer, n, v, "bf16").outcome for n, v in results.items()} == dict.fromkeys(results, "pass")
    wrong = load("subtle_faults").kernel(problem, operator, "bf16", "decay of q one token late")
    assert judge.score(answer, "o", wrong["o"], "bf16").outcome == "reject"


@pytest.mark.parametrize("seed", range(4))
def test_a_shared_gradient_may_be_summed_by_one_accumulator(seed: int) -> None:
    case = Case(*("rwkv6", 1, 600, 2, 8, 8), dtype="fp32", gate="mild", cotangent="both", final_state=True, seed=seed)
    problem = draw.problem(case, registry.operator("rwkv6"))
    judge = Judge(registry.operator("rwkv6"), "cpu")
    answer = judge.answer(problem)
    q, k, v = (problem.tensors[n][0] for n in ("q", "k", "v"))
    du = torch.zeros(2, 8)
    for t, do in enumerate(problem.cotangents["o"][0]):
        du = du + 8**-0.5 * q[t] * k[t] * (v[t] * do).sum(-1, keepdim=True)
    assert judge.score(answer, "du", du, "fp32").outcome == "pass"
    assert judge.score(answer, "du", du * (1 + 2e-5), "fp32").outcome == "reject"
