"""Shared by all tests: how Hypothesis runs, and hand-made records for the reports."""

import dataclasses
import os
from pathlib import Path

# Before torch is imported, here and in what tests start: threads that wait for each other, on processors that other tests keep
# busy, take up to twenty times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from linverify.insight import Attribution, ErrorCloud, ErrorMap, Growth, Insight, RecipeMatch, Residual, WorstCase
from linverify.verdict import (
    BudgetUse,
    Evidence,
    Failure,
    Location,
    PropertyResult,
    Refusal,
    Report,
    Status,
    TargetResult,
)

# A kernel check has no business with wall-clock limits; in CI the same examples run every time.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

CASE = "gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3"

CRASH_LOG = """loading
Fatal Python error: Segmentation fault

Current thread 0x1 (most recent call first):
  File "k.py", line 3 in crash
  File "/site-packages/linverify/invoke.py", line 72 in run
  File "/site-packages/linverify/worker.py", line 41 in main
  File "<frozen runpy>", line 88 in _run_code

Extension modules: numpy.linalg, torch._C, torch._C._fft (total: 14)
"""


@pytest.fixture
def numeric_failure() -> Failure:
    """A wrong value at the last tile, as the judge describes it."""
    return Failure(
        case_id=CASE,
        sizes={"B": 1, "T": 33, "H": 1, "K": 16, "V": 17},
        evidence=Evidence(
            "wrong_value",
            "o",
            how_many=17,
            of=561,
            how_far=0.3125,
            where="b=0, t=32, h=0, v=5",
            expected=1.25,
            got=0.9375,
            allowed=0.0125,
            share=25.0,
            statistic="maximum",
        ),
        location=Location(first_bad_t=32, heads="1 of 1 heads", times="t = 0 mod 16", suspected_chunk=16),
        diagnosis="The last chunk is wrong when T is no multiple of 16: rows beyond T are read without a mask.",
        reproducer=".linverify/gla-agreement.py",
        original_case_id="gla/B2.T100.H3.K32.V48/bf16/gate=mild/seed=3",
    )


@pytest.fixture
def process_failure() -> Failure:
    """A crash, which has no numbers."""
    return Failure(
        case_id="gla/B1.T1.H1.K16.V16/fp32",
        sizes={"B": 1, "T": 1, "H": 1, "K": 16, "V": 16},
        evidence=Evidence("crash", message="the process died of SIGSEGV"),
        log=CRASH_LOG,
    )


@pytest.fixture
def violation(numeric_failure: Failure, process_failure: Failure) -> TargetResult:
    """Every status at once."""
    return TargetResult(
        "my_gla.py::my_gla",
        "gla",
        "chunkwise",
        "triton",
        "violation",
        properties=(
            PropertyResult("agreement", Status.VIOLATION, True, 12, 1, 3.25, 25.0, numeric_failure),
            PropertyResult("gradients", Status.VIOLATION, True, 4, 0, 1.5, None, process_failure),
            PropertyResult("causality", Status.PASS, True, 8, 0, 2.0, 0.41),
            PropertyResult("linearity", Status.MARGINAL, True, 8, 0, 2.0, 1.004),
            PropertyResult("packed", Status.REFUSED, True, 0, 5, 0.25, note="every case was refused"),
            PropertyResult("state_passing", Status.UNCHECKED, True, 0, 0, 0.0, note="time ran out"),
            PropertyResult("batch_invariance", Status.REPORTED, False, 6, 0, 75.0, 0.5),
            PropertyResult("default_scale", Status.NOT_OFFERED, False, note="no scale argument"),
            PropertyResult("reductions", Status.NOT_APPLICABLE, True, note="gla has no simpler operator"),
        ),
        budget=(
            BudgetUse("o", "fp32", 6, 0.2, "fp32"),
            BudgetUse("o", "bf16", 6, 25.0, "bf16"),
            BudgetUse("dq", "bf16", 2, 0.75, "bf16"),
        ),
        refusals=(Refusal("OutOfResources", "shared memory", "gla/B1.T16.H1.K256.V16/fp32", 5),),
        notes=("gradients of initial_state are not offered",),
        cases=27,
        seconds={"import": 1.5, "compile_and_run": 6.0, "reference": 0.5, "judge": 0.25, "total": 83.0},
    )


@pytest.fixture
def passing() -> TargetResult:
    """A target that holds."""
    return TargetResult(
        "fla.ops.gla:chunk_gla",
        "gla",
        "",
        "",
        "pass",
        properties=(PropertyResult("agreement", Status.PASS, True, 12, 0, 3.0, 0.62),),
        budget=(BudgetUse("o", "fp32", 12, 0.62, "tf32"),),
        cases=12,
        seconds={"total": 3.0},
    )


@pytest.fixture
def report(violation: TargetResult, passing: TargetResult) -> Report:
    """A whole run."""
    return Report("0.1.0", {"torch": "2.13.0"}, 0, "quick", (violation, passing))


@pytest.fixture
def insight() -> Insight:
    """One of everything a check can learn besides the verdict."""
    case = CASE
    lengths = (64, 128, 256, 512, 1024, 2048)
    grid = tuple(tuple(3.5 if h == 1 and t >= 12 else 0.1 * h + 0.01 * t for t in range(16)) for h in range(4))
    allowed = tuple(10.0 ** -(4 + i % 4) for i in range(400))
    return Insight(
        attribution=(
            Attribution("o", "bf16", case, {"input": 0.1, "gates": 0.2, "scores": 0.5, "output": 0.2}, 0.6, "Scores."),
            Attribution("dq", "bf16", case, {"input": 0.75, "output": 0.25}),
        ),
        growth=(
            Growth("o", "bf16", lengths, tuple(0.001 * (t / 64) ** 0.5 for t in lengths), 0.5, 0.45, 0.55, 0.1, 1024),
        ),
        recipes=(
            RecipeMatch("fp32", "state in bf16", -3.2, ("scores in bf16",), "ieee", -0.4, 0.04),
            RecipeMatch("bf16", "", -0.2, residual=0.8),
        ),
        worst=(WorstCase("o", "bf16", case, 25.0), WorstCase("dq", "bf16", "gla/B1.T64.H2.K16.V32/bf16", 0.75)),
        maps=(ErrorMap("o", "bf16", case, 16, grid), ErrorMap("dq", "bf16", "gla/B2.T64.H2.K16.V32/bf16", 0, grid)),
        clouds=(
            ErrorCloud("o", "bf16", case, allowed, tuple(a * (7.0 if i < 3 else 0.3) for i, a in enumerate(allowed))),
        ),
        residuals=(
            Residual("o", "fp32", case, "state in bf16", 4.5, "row", "t 3, 7"),
            Residual("dq", "fp32", case, "state in bf16", 0.5, "rms"),
        ),
    )


@pytest.fixture
def script() -> str:
    """Text of a reproducer, with what HTML would take for markup."""
    return "# Written by linverify\nprint('<b>&amp;</b>')\n"


@pytest.fixture
def full_run(report: Report, insight: Insight, script: str, tmp_path: Path) -> Report:
    """A whole run with insight, laws and a reproducer that is there."""
    path = tmp_path / "gla-agreement.py"
    path.write_text(script)
    result = report.results[0]
    first = result.properties[0]
    assert first.failure is not None
    failure = dataclasses.replace(first.failure, reproducer=str(path))
    properties = (dataclasses.replace(first, failure=failure), *result.properties[1:])
    whole = dataclasses.replace(result, properties=properties, insight=insight, file="my_gla.py", line=12)
    laws = {
        "agreement": "The output equals the operator's equations.",
        "causality": "No result depends on later tokens.",
    }
    return dataclasses.replace(
        report, results=(whole, *report.results[1:]), laws=laws, started="2026-01-02T03:04:05+00:00"
    )
