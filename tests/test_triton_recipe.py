"""The recipe of a kernel in Triton is found from what it computes, in the interpreter as on a GPU."""

import pytest

from linverify import draw
from linverify.binding import bind
from linverify.case import Case
from linverify.fingerprinting import Observed, fingerprint
from linverify.judge import Judge
from linverify.problem import Call, Program
from linverify.registry import operator
from linverify.runner import Runner
from linverify.target import parse

pytest.importorskip("triton")


def test_tf32_rounded_to_nearest_is_told_from_fp16_by_what_has_decayed() -> None:
    """Of fp16 operands the kernel takes what a gate has decayed as TF32; fp16 would have lost digits of what is small."""
    op = operator("gla")
    case = Case(
        "gla", T=130, K=32, V=16, dtype="fp16", gate="production", state="normal", final_state=True, cotangent="both"
    )
    posed, judge = draw.problem(case, op), Judge(op, "cpu")
    with Runner(parse("linverify.impls.triton_chunkwise"), device="cpu") as runner:
        runner.bind(bind(op, next(f for f in runner.describe().functions if f.name == "gla")), op)
        (result,) = runner.run(Program((Call(posed),)), time_limit=300.0)
    answer = judge.answer(posed)
    found = {n: x.reshape(answer.reference[n].shape) for n, x in result.named().items()}
    match = fingerprint(op, "fp16", "fp16", [Observed(answer, found)])
    assert "tf32rn,C=64,backward=separate" in (match.name, *match.ties)
    assert all("tf32rn" in name for name in (match.name, *match.ties))
