"""What a check tells besides its verdict: each part must see what is planted, and say nothing where there is nothing."""

import math

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.attribution import OUTPUT, STAGES, attribute, stages
from linverify.budget import CERTIFICATE
from linverify.case import Case
from linverify.certificate import bound_note, certify
from linverify.dtype import format_of, round_to
from linverify.ensemble import flipped, simulated
from linverify.errormaps import error_cloud, error_map
from linverify.fingerprinting import GAP, Observed, built, fingerprint, residuals
from linverify.growth import Rung, fitted, growth, rung
from linverify.insight import RecipeMatch
from linverify.judge import Judge
from linverify.recipe import FURTHER, POINTS
from linverify.reference import stepwise
from linverify.score import Answer, Score
from linverify.statistics import Axes
from linverify.subtracted import Subtraction


def answered(name: str, dtype: str, T: int = 100, **changes: object) -> tuple[Judge, Answer, Case]:
    operator = registry.operator(name)
    case = Case(name, 1, T, 2, 16, 20, dtype=dtype, state="normal", final_state=True, cotangent="both", seed=5)
    case = case.with_(**({"gate": "production"} if operator.gated else {}) | changes)
    judge = Judge(operator, "cpu")
    return judge, judge.answer(draw.problem(case, operator)), case


def kernel(answer: Answer, recipe: str, dtype: str, *, seed: int = 1) -> dict[str, Tensor]:
    """Results of an emulated kernel: its operands really rounded, its float32 sums in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    gates = tuple(n for n in answer.problem.wrt if n in ("g", "w"))
    _, forms = flipped(answer.question, built(recipe, dtype, dtype), gates, generator, 1)
    given = {**answer.problem.tensors, "initial_state": answer.problem.initial_state}
    out = {}
    for name, value in forms[0].items():
        like = answer.problem.tensors["v"] if name == "o" else given[name[1:]] if name[0] == "d" else None
        stored = torch.float32 if like is None else like.dtype
        out[name] = round_to(value[0], format_of(stored)).to(stored)
    return out


# Fingerprints


@pytest.mark.parametrize(
    ("name", "dtype", "recipe"),
    [
        ("linear_attention", "bf16", "native,C=32,backward=separate,state=fp32"),
        ("simple_gla", "fp32", "tf32,C=16"),
        ("gla", "fp16", "native,C=64,scores=fp32"),
        ("delta_rule", "bf16", "native,C=32"),
        ("retention", "bf16", "native,C=64,carry=native"),
        ("simple_gla", "bf16", "native,C=32,gates=native"),
        ("gla", "fp32", "recurrent"),
    ],
)
def test_the_recipe_of_an_emulated_kernel_is_found(name: str, dtype: str, recipe: str) -> None:
    judge, answer, _ = answered(name, dtype)
    observed = Observed(answer, kernel(answer, recipe, dtype))
    match = fingerprint(judge.operator, dtype, dtype, [observed])
    assert match.name
    left = residuals(judge.operator, observed, built(recipe, dtype, dtype))
    truth = sum(math.log(max(x, 2.0**-43)) for x in left.values()) / len(left)
    assert match.score <= truth + GAP
    # what is named leaves as little as the truth, so it has the truth's formats wherever they matter
    assert built(match.name, dtype, dtype).scores is built(recipe, dtype, dtype).scores
    assert match.sentence


def test_a_wrong_kernel_has_no_recipe() -> None:
    judge, answer, _ = answered("gla", "bf16")
    results = kernel(answer, "native", "bf16")
    wrong = {n: (t.double() * 1.05).to(t.dtype) for n, t in results.items()}
    match = fingerprint(judge.operator, "bf16", "bf16", [Observed(answer, wrong)], seconds=2.0)
    assert (match.name, match.ties) == ("", ())
    assert "no candidate" in match.sentence


def test_time_is_kept() -> None:
    judge, answer, _ = answered("kda", "bf16")
    match = fingerprint(
        judge.operator, "bf16", "bf16", [Observed(answer, kernel(answer, "native", "bf16"))], seconds=0.0
    )
    assert isinstance(match, RecipeMatch)


# Subtraction


def test_a_fault_below_half_an_ulp_is_seen_after_subtraction() -> None:
    judge, answer, _ = answered("gla", "bf16")
    own = built("native,C=32", "bf16", "bf16")
    results = kernel(answer, "native,C=32", "bf16")
    left = Subtraction(judge.operator, answer, own)
    scores = {n: left.score(n, v, judge.axes(n)) for n, v in results.items()}
    claimed = {n: s for n, s in scores.items() if s is not None}
    assert {"o", "dq", "dk", "dv"} <= set(claimed)
    assert all(s.outcome == "pass" for s in claimed.values()), {n: s.share for n, s in claimed.items()}
    late = results["o"].double()
    late[:, -1] *= 1.006
    faulty = late.bfloat16()
    assert judge.score(answer, "o", faulty, "bf16", own).outcome == "pass"  # rounding covers it
    found = left.score("o", faulty, judge.axes("o"))
    assert found is not None
    assert found.outcome == "reject"


def test_an_unmatched_recipe_claims_nothing() -> None:
    judge, answer, _ = answered("gla", "bf16")
    results = kernel(answer, "native,C=32", "bf16")
    other = Subtraction(judge.operator, answer, built("native,C=64,scores=fp32", "bf16", "bf16"))
    assert all(other.score(n, results[n], judge.axes(n)) is None for n in ("o", "dv"))


# Attribution


def test_stages_name_every_rounding_point_once() -> None:
    named = [p for points in STAGES.values() for p in points]
    assert len(named) == len(set(named))
    assert {*POINTS, *FURTHER} - {"output"} <= set(named)


@pytest.mark.parametrize(
    ("name", "recipe", "result", "stage"),
    [
        ("linear_attention", "fp32,scores=bf16", "o", "scores"),
        ("linear_attention", "fp32,state=bf16", "o", "state"),
        ("gla", "fp32,gates=bf16", "o", "gates"),
        ("gla", "fp32,query=bf16", "o", "decayed operands"),
        ("delta_rule", "fp32,u=bf16,inverse=bf16", "o", "triangular inverse"),
        ("delta_rule", "fp32,value=bf16", "state", "values"),
    ],
)
def test_a_stage_that_rounds_alone_gets_the_share(name: str, recipe: str, result: str, stage: str) -> None:
    judge, answer, case = answered(name, "fp32")
    value = kernel(answer, recipe, "fp32")[result]
    found = attribute(
        stages(judge.operator, answer, built(recipe, "fp32", "fp32")), answer, result, value, case.id, "fp32"
    )
    assert found is not None
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares[stage] > 0.9, found.shares
    assert found.unexplained == 0
    assert found.sentence.startswith(f"{found.shares[stage]:.0%} of what rounding leaves in {result}")


def test_the_energy_law_holds() -> None:
    judge, answer, _ = answered("gla", "bf16", T=200)
    recipe = built("native,C=32", "bf16", "bf16")
    energy = stages(judge.operator, answer, recipe).energy
    whole = simulated(answer.question, recipe, ())[0]
    for n in ("o", "dq", "dk", "dv"):
        measured = float((whole[n] - answer.reference[n]).square().mean())
        assert 0.6 < sum(energy[n].values()) / measured < 1.7, n


def test_what_no_stage_explains_is_unexplained() -> None:
    judge, answer, case = answered("gla", "fp32")
    found = stages(judge.operator, answer, built("fp32", "fp32", "fp32"))
    value = (answer.reference["o"] * 1.001).float()
    seen = attribute(found, answer, "o", value, case.id, "fp32")
    assert seen is not None
    assert seen.unexplained > 0.99
    assert "explained by none" in seen.sentence
    right = attribute(found, answer, "o", answer.reference["o"].float(), case.id, "fp32")
    assert right is not None
    assert (right.unexplained, OUTPUT in right.shares) == (0.0, True)


# Maps and clouds


def score(error: Tensor, outcome: str = "reject") -> Score:
    return Score(outcome, 2.0, "row", error, torch.full_like(error, 0.5), torch.zeros_like(error), 4.0)


def test_a_map_shows_where() -> None:
    error = torch.zeros(4, 130, 8, dtype=torch.float64)
    error[2, 70, 3] = 6.0
    found = error_map(score(error, "pass"), Axes("BTHV"), 2, "o", "bf16", "id")
    assert found is not None
    assert (found.chunk, len(found.grid), len(found.grid[0])) == (0, 4, 64)
    assert max(max(row) for row in found.grid) == max(found.grid[2]) == 3.0
    error[2, 64:, 3] = 6.0
    found = error_map(score(error), Axes("BTHV"), 2, "o", "bf16", "id")
    assert found is not None
    assert found.chunk == 64
    assert error_map(score(error), Axes("NHKV"), 2, "state", "bf16", "id") is None


def test_a_cloud_holds_the_worst() -> None:
    error = torch.rand(2, 50, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error[1, 7, 9] = float("nan")
    found = error_cloud(score(error), "o", "bf16", "id")
    assert len(found.errors) == len(found.allowed) == 400
    assert math.isnan(found.errors[0])
    assert set(found.allowed) == {2.0}


# Growth


def rungs(target: float, recipe: float) -> list[Rung]:
    lengths = (64, 128, 256, 512, 1024, 2048)
    wiggle = (1.01, 0.99, 1.02, 0.98, 1.0, 1.01)
    return [
        Rung(T, {"o": 1e-3 * w * (T / 64) ** target}, {"o": 1e-3 * w * (T / 64) ** recipe})
        for T, w in zip(lengths, wiggle, strict=True)
    ]


def test_a_slope_has_its_interval() -> None:
    slope, low, high = fitted([1, 2, 4, 8], [1.0, 2.1, 3.9, 8.2])
    assert low < slope < high
    assert slope == pytest.approx(1.0, abs=0.05)
    assert fitted([1, 2, 4, 8], [1.0, 2.0, 4.0, 8.0]) == pytest.approx((1.0, 1.0, 1.0))


def test_drift_is_named_and_its_absence_too() -> None:
    drifting = growth(rungs(0.5, 0.0), "o", "bf16")
    assert drifting is not None
    assert drifting.low > 0.4
    # 1e-3 sqrt(T / 64) reaches one percent at T = 6400
    assert drifting.safe_up_to == pytest.approx(6400, rel=0.1)
    assert f"state safe up to T = {drifting.safe_up_to}" in drifting.sentence
    steady = growth(rungs(0.5, 0.5), "o", "bf16")
    assert steady is not None
    assert steady.safe_up_to is None
    assert "as the recipe predicts" in steady.sentence
    assert growth(rungs(0.5, 0.0)[:3], "o", "bf16") is None


def test_a_carried_state_in_sixteen_bits_drifts() -> None:
    operator = registry.operator("linear_attention")
    found = []
    for T in (64, 128, 256, 512, 1024, 2048):
        _, answer, _ = answered("linear_attention", "bf16", T=T, state="absent", gate="none")
        given = kernel(answer, "native,C=64,carry=native", "bf16")
        found.append(rung(operator, answer, given, built("native,C=64", "bf16", "bf16"), T))
    carried = growth(found, "state", "bf16")
    assert carried is not None
    assert carried.safe_up_to is not None
    assert 0.3 < carried.slope < 0.6  # a random walk


# The ladder


def test_a_certificate_says_how_far_the_next_rung_is() -> None:
    judge, answer, _ = answered("gated_delta_rule", "bf16", T=20)
    scale = {"o": lambda difference: difference / 2.0**-8}
    device = torch.device("cpu")
    found = certify(answer.problem, judge.operator, answer.reference, scale, device)
    assert (found.reference, found.by) == (None, "stepwise")
    assert found.bound < CERTIFICATE / 1e6
    assert "at most" in bound_note([found.bound])[0]
    assert bound_note([]) == []


@pytest.mark.parametrize(("T", "by"), [(5, "mpmath"), (200, "stepwise")])
def test_a_reference_that_is_wrong_is_replaced(T: int, by: str) -> None:
    judge, answer, _ = answered("gla", "fp32", T=T)
    value = answer.reference["o"].float()
    assert judge.score(answer, "o", value * 1.01, "fp32").outcome == "reject"  # draws all realisations there are
    answer.reference["o"] = answer.reference["o"] * 1.01
    first = judge.score(answer, "o", value, "fp32")
    assert first.outcome == "reject"
    assert judge.certify(answer, "o", first)
    assert answer.certificate is not None
    assert (answer.certificate.by, answer.certificate.bound > CERTIFICATE) == (by, True)
    assert judge.score(answer, "o", value, "fp32").outcome == "pass"
    assert not judge.certify(answer, "o", first)  # once
    assert torch.allclose(answer.reference["o"], stepwise(answer.problem, judge.operator)["o"])
