"""The recipe of a kernel in Triton is found from what it computes, in the interpreter as on a GPU."""

from linverify import draw
from linverify.case import Case
from linverify.fingerprinting import Observed, fingerprint
from linverify.judge import Judge
from linverify.registry import operator
from tests.judged_kernels import NEEDS_TRITON, computed

pytestmark = NEEDS_TRITON


def test_tf32_rounded_to_nearest_is_told_from_fp16_by_what_has_decayed() -> None:
    """Of fp16 operands the kernel takes what a gate has decayed as TF32; fp16 would have lost digits of what is small."""
    op = operator("gla")
    case = Case(
        "gla", T=130, K=32, V=16, dtype="fp16", gate="production", state="normal", final_state=True, cotangent="both"
    )
    posed, judge = draw.problem(case, op), Judge(op, "cpu")
    found = computed("linverify.impls.triton_chunkwise:gla", posed, op)
    match = fingerprint(op, "fp16", "fp16", [Observed(judge.answer(posed), found)])
    assert "tf32rn,C=64,backward=separate" in (match.name, *match.ties)
    assert all("tf32rn" in name for name in (match.name, *match.ties))
