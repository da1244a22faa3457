"""Typical mistakes in recurrent kernels are found by `check`, and what is right in public code is not called wrong."""

from pathlib import Path

import pytest

from linverify.plan import Plan
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import TargetResult

KERNELS = Path(__file__).with_name("recurrent_kernels.py")
WRONG = [
    ("mlstm", "mlstm_floor_of_one", "agreement"),
    ("mlstm", "mlstm_without_maximum", "agreement"),
    ("mlstm", "mlstm_forget_gate_of_the_next_token", "causality_gates"),
    ("hgrn2", "hgrn2_key_in_half", "agreement"),
    ("hgrn2", "hgrn2_one_path", "gradients"),
    ("hgrn", "hgrn_gate_of_the_token_before", "agreement"),
    ("rwkv4", "rwkv4_newest_twice", "agreement"),
    ("rwkv5", "rwkv5_decay_before_read", "agreement"),
    ("mamba1", "mamba1_exact_hold", "agreement"),
    ("mamba1", "mamba1_one_path", "gradients"),
    ("gated_delta_product", "product_gate_at_every_step", "agreement"),
    ("dplr", "dplr_reads_decayed", "agreement"),
    ("iplr", "iplr_exchanged", "agreement"),
    ("ttt_linear", "ttt_rate_of_the_first", "agreement"),
    ("ttt_linear", "ttt_of_fla", "inputs_untouched"),
    ("lru", "lru_real_parts", "agreement"),
    ("s4d", "s4d_wrapped", "causality_values"),
    ("s4", "s4_transposed", "agreement"),
    ("hippo_legs", "legs_from_two", "agreement"),
    ("gated_delta_product", "product_without_scale", "agreement"),
    ("rwkv6", "rwkv6_of_fla", "gradients"),
    ("linear_attention", "state_unasked", "contract"),
]
KINDS = ("wrong_value", "not_finite", "not_bitwise", "mutated_input", "wrong_type")


def judged(operator: str, function: str, law: str, folder: Path, dtype: str = "fp32") -> TargetResult:
    if function.endswith("_of_fla"):
        pytest.importorskip("fla")
    plan = Plan(
        f"{KERNELS}::{function}",
        operator=operator,
        profile="quick",
        dtypes=(dtype,),
        properties=(law,),
        reproducers=folder,
        fail_fast=True,
    )
    (result,) = check(plan, Silence())
    return result


@pytest.mark.parametrize(("operator", "function", "law"), WRONG)
def test_a_typical_mistake_is_found(operator: str, function: str, law: str, tmp_path: Path) -> None:
    result = judged(operator, function, law, tmp_path)
    assert result.verdict == "violation", result.reason
    failure = result.properties[0].failure
    assert failure is not None
    assert failure.evidence.kind in KINDS


def test_the_step_of_the_authors_of_xlstm_passes(tmp_path: Path) -> None:
    assert judged("mlstm", "mlstm_of_the_authors", "agreement", tmp_path).verdict == "pass"


def test_a_kernel_that_always_raises_is_unchecked(tmp_path: Path) -> None:
    result = judged("cosformer", "cosformer_elu", "agreement", tmp_path)
    assert result.verdict == "unchecked"
    assert result.reason == "the target refused every case"


def test_a_reader_that_is_not_cast_passes_where_the_products_cast_it(tmp_path: Path) -> None:
    assert judged("dplr", "dplr_of_fla", "agreement", tmp_path, "bf16").verdict == "pass"


def test_a_chunked_form_that_takes_one_length_alone_is_listed_as_refusing(tmp_path: Path) -> None:
    result = judged("hgrn", "hgrn_of_fla_in_chunks", "agreement", tmp_path)
    assert sum(p.refused for p in result.properties) > 0


def test_every_new_operator_has_a_planted_mistake() -> None:
    assert len({operator for operator, _, _ in WRONG}) == 16


@pytest.mark.parametrize(("length", "verdict"), [(0, "pass"), (2000, "violation")])
def test_a_period_of_the_tokens_at_hand_is_found_where_one_was_agreed(
    length: int, verdict: str, tmp_path: Path
) -> None:
    plan = Plan(
        f"{KERNELS}::cosformer_of_the_tokens_at_hand",
        operator="cosformer",
        operator_parameters={"length": length},
        profile="quick",
        dtypes=("fp32",),
        properties=("agreement",),
        reproducers=tmp_path,
    )
    (result,) = check(plan, Silence())
    assert result.verdict == verdict
