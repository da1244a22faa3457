"""Typical mistakes in attention with scores and attention over all tokens are found, and a published module passes."""

import shutil
from pathlib import Path

import pytest

from linverify.case import parse_case
from linverify.plan import Plan
from linverify.session import check, replay
from linverify.verdict import Status, TargetResult
from tests.test_session import Heard

KERNELS = Path(__file__).with_name("score_kernels.py")

# kernel, operator with its parameters, the law that finds it
MISTAKES = (
    ("window_too_wide", "softmax_attention:window=5", "agreement"),
    ("maximum_not_carried", "softmax_attention:causal=false", "agreement"),
    ("keys_over_features", "efficient_attention", "agreement"),
    ("scale_once", "agent_attention", "agreement"),
    ("padded_rows_count", "linformer", "agreement"),
    ("norms_of_halves", "hydra_attention", "agreement"),
    ("half_of_all", "linear_angular_attention", "agreement"),
    ("mask_after_weights", "gau:causal=true", "causality_values"),
    ("slope_without_two", "gau", "gradients"),
    ("own_chunk_twice", "flash:chunk=8,causal=true", "causality_values"),
    ("last_chunk_by_its_length", "flash:chunk=8,causal=true", "agreement"),
    ("own_term_twice", "linear_attention:causal=false", "agreement"),
)
# what agreement does not see
HIDDEN = ("slope_without_two",)


def judged(folder: Path, kernel: str, operator: str, *laws: str, seed: int = 0) -> TargetResult:
    """A quick look in two formats at a copy of the kernels."""
    file = shutil.copy(KERNELS, folder / "kernels.py")
    name, _, text = operator.partition(":")
    parameters = dict(part.split("=") for part in text.split(",")) if text else {}
    plan = Plan(
        f"{file}::{kernel}",
        operator=name,
        operator_parameters=parameters,
        profile="quick",
        dtypes=("fp32", "bf16"),
        properties=laws,
        seed=seed,
        fail_fast=True,
    )
    (result,) = check(plan, Heard())
    return result


@pytest.mark.parametrize(("kernel", "operator", "law"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_found(kernel: str, operator: str, law: str, tmp_path: Path) -> None:
    (found,) = judged(tmp_path, kernel, operator, law).properties
    assert found.status is Status.VIOLATION, found
    assert found.failure is not None
    assert found.failure.evidence.kind in ("wrong_value", "not_bitwise")
    if kernel in HIDDEN:
        (agreement,) = judged(tmp_path, kernel, operator, "agreement").properties
        assert agreement.status is Status.PASS, agreement.failure


@pytest.mark.parametrize("operator", ["gau", "gau:causal=true"])
def test_a_published_module_passes(operator: str, tmp_path: Path) -> None:
    pytest.importorskip("flash_pytorch")
    found = judged(tmp_path, "gau_of_flash_pytorch", operator, "agreement", "gradients", "linearity", "contract")
    assert [p.status for p in found.properties] == [Status.PASS] * 4


def test_two_forms_may_overflow_where_the_result_does(tmp_path: Path) -> None:
    case = "flash/B3.T33.H1.K20.V12/fp16/regime=outlier/cotangent=o/scale=other/seed=3"
    plan = Plan(
        "linverify.impls.torch_chunkwise:flash",
        operator="flash",
        profile="quick",
        dtypes=("fp16",),
        properties=("form_equivalence",),
    )
    (found,) = replay(plan, parse_case(case), Heard())
    assert found.verdict != "violation", found.properties
