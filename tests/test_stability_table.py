"""The table of mechanisms: measured again where it is quick, and the published one agrees with the theory."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.registry import implementations, operators
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import Status
from tests.scripts import load
from tests.zoo.catalogue import CORRECT

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = json.loads((ROOT / "docs" / "published" / "stability-cpu.json").read_text(encoding="utf-8"))
script = load("stability_table")
ROWS = {row.name: row for row in script.TABLE}


@pytest.mark.parametrize("name", ["softmax", "1+elu", "identity, cancelling", "NormAttention", "mLSTM", "delta rule"])
def test_a_mechanism_is_what_the_theory_says(name: str) -> None:
    measured = script.measure(ROWS[name], "fp64")
    assert measured.differs == ()
    assert measured.holds


def test_a_wrong_theory_is_told() -> None:
    row = ROWS["1+elu"]
    wrong = script.Expected("1+elu", row.operator, "", 1.0, "bounded", -2.0, 1e-3, -1.0)
    measured = script.measure(wrong, "fp64")
    told = " ".join(measured.differs)
    for part in ("verdict bounded by eps", "slope -0.99", "own slope", "crossover", "sup"):
        assert part in told


def test_the_published_table_has_every_mechanism_and_agrees_in_float64() -> None:
    assert [row["expected"]["name"] for row in PUBLISHED["rows"]] == list(ROWS)
    for row in PUBLISHED["rows"]:
        by_dtype = {m["dtype"]: m for m in row["measured"]}
        assert set(by_dtype) == {"fp64", "fp32", "bf16", "fp16"}
        assert not by_dtype["fp64"]["differs"], row["expected"]["name"]
        assert all(m["holds"] for m in by_dtype.values()), row["expected"]["name"]


def test_the_published_page_shows_the_published_record() -> None:
    page = (ROOT / "docs" / "published" / "stability-cpu.md").read_text(encoding="utf-8")
    for row in PUBLISHED["rows"]:
        (exact,) = (m for m in row["measured"] if m["dtype"] == "fp64")
        if exact["rho"] is not None:
            assert f"| {exact['rho']:.4g} |" in page
        assert f"| {row['expected']['name']} |" in page


@pytest.mark.parametrize("operator", ["normalized_linear_attention", "softmax_attention", "norm_attention", "mlstm"])
def test_the_built_in_forms_keep_to_their_bounds(operator: str) -> None:
    for form in implementations():
        if form.operator == operator:
            plan = Plan(form.target_text, operator, properties=("gradient_bound",), profile="quick")
            (found,) = check(plan, Silence())
            (law,) = found.properties
            assert law.status is Status.PASS, law.failure
            assert law.cases >= (2 if form.backend == "triton" else 3)  # the interpreter leaves bf16 out


def test_small_features_may_be_what_is_left_of_elu_and_one(tmp_path: Path) -> None:
    # as libraries write the map: -1 + 3e-5 is rounded like 1, and a five-hundredth of the feature is lost
    (entry,) = (e for e in CORRECT if e.name == "normalized_chunks_of_32")
    source = entry.write(tmp_path)
    assert "elu(" in source.read_text(encoding="utf-8")
    plan = Plan(
        f"{source}::{entry.function}", entry.operator, properties=("gradient_bound",), profile="quick", dtypes=("fp32",)
    )
    for seed in (0, 1):
        (found,) = check(dataclasses.replace(plan, seed=seed), Silence())
        (law,) = found.properties
        assert law.status is Status.PASS, law.failure


def test_the_law_concerns_every_operator_that_states_a_mechanism() -> None:
    stating = {name for name, o in operators().items() if o.mechanism is not None}
    assert {"softmax_attention", "cosformer", "performer", "based", "rebased", "mlstm", "transnormer_llm"} <= stating
    assert "gla" not in stating


def test_a_backward_pass_without_eps_breaks_this_law_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(PROFILES["quick"], cases=2, shrink_seconds=0.0)
    monkeypatch.setitem(PROFILES, "few", few)
    target = str(Path(__file__).parent / "planted" / "bounds.py::eps_lost_backward")
    plan = Plan(target, "normalized_linear_attention", profile="few", dtypes=("fp32", "bf16"))
    (found,) = check(plan, Silence())
    assert found.verdict == "violation"
    assert {p.name for p in found.properties if p.status is Status.VIOLATION} == {"gradient_bound"}
    (law,) = (p for p in found.properties if p.name == "gradient_bound")
    assert law.failure is not None
    assert "times its mechanism's own bound 1 / (Z + 1e-06)" in law.failure.diagnosis
    assert math.isfinite(law.seconds)
