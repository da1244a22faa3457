"""The Triton kernels of softmax attention: right with every mask, and seen to be wrong with a fault planted in any of them."""

from pathlib import Path

import pytest

from linverify.case import Case
from linverify.operator import Operator
from linverify.problem import Refused
from linverify.registry import operator
from tests.judged_kernels import DEVICES, NEEDS_TRITON, planted, rejected, rounding_bf16, scored

pytestmark = NEEDS_TRITON

TARGET = "linverify.impls.triton_attention:softmax_attention"
MASKS = [(True, 0), (False, 0), (True, 64), (False, 5)]


def stated(causal: bool, window: int) -> Operator:
    rebuild = operator("softmax_attention").rebuild
    assert rebuild is not None
    return rebuild(causal=causal, window=window)


def case(**changes: object) -> Case:
    whole = Case(
        "softmax_attention", B=2, T=66, H=4, G=2, K=7, V=18, dtype="fp32", scale="other", cotangent="o", seed=1
    )
    return whole.with_(**changes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_kernels_agree_with_the_reference(causal: bool, window: int, dtype: str, device: str) -> None:
    if device == "cpu" and dtype == "bf16":
        pytest.skip("the interpreter multiplies bfloat16 wrongly")
    cases = [
        case(dtype=dtype, T=1),
        case(dtype=dtype),
        case(dtype=dtype, T=130, H=1, G=1, B=1),
        case(dtype=dtype, B=1, T=82, lengths=(17, 0, 1, 64)),
    ]
    assert not rejected(TARGET, cases, device, stated(causal, window))


@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("sizes", [{"K": 256, "V": 64}, {"K": 128, "V": 128}, {"K": 64, "V": 256}])
def test_kernels_agree_where_they_are_widest(sizes: dict[str, int], dtype: str, device: str) -> None:
    assert not rejected(TARGET, [case(dtype=dtype, T=300, **sizes)], device)


def test_bf16_is_rounded_where_a_kernel_may(tmp_path: Path) -> None:
    helpers = ("_triton_rows", "_triton_attention_gradients", "_triton_attention")
    target = rounding_bf16(tmp_path, "triton_attention", "softmax_attention", helpers)
    scores = scored(target, [case(dtype="bf16", T=70, K=40, V=36, seed=s) for s in (1, 2)])
    worst = {n: max(of[n].share for of in scores) for n in scores[0]}
    assert all(s.outcome == "pass" for of in scores for s in of.values()), worst
    assert max(worst.values()) > 0.1, "nothing was rounded"


@pytest.mark.parametrize(
    ("helper", "right", "wrong", "seen"),
    [
        ("", "out = kept[:, None] * out +", "out = out +", "o"),
        ("", "total = kept * total +", "total = total +", "o dq"),
        ("", "h // (H // G)", "h % G", "o"),
        ("_tiles", "i[:, None] - j[None, :] < window", "i[:, None] - j[None, :] <= window", "o dk"),
        ("_tiles", "at * 0\n    stop = tl.minimum(at + BT", "at * 0 + BS\n    stop = tl.minimum(at + BT", "o dq"),
        ("_tiles", "stop = tl.minimum(at + BS - 1 + window, T)", "stop = tl.minimum(at + BS - 1, T)", "dk dv"),
        ("_gradients", "(product(dO, tl.trans(Y)) - D[:, None])", "product(dO, tl.trans(Y))", "dq dk"),
        ("_gradients", "(g + 1) * (H // G)", "(g + 1) * (H // G) - 1", "dk dv"),
        ("_gradients", "scale * dX", "dX", "dk"),
        ("_gradients", "dQ += product(dS", "dQ = product(dS", "dq"),
    ],
)  # fmt: skip
def test_a_fault_in_any_kernel_is_seen(helper: str, right: str, wrong: str, seen: str, tmp_path: Path) -> None:
    masks = stated(True, 0) if "at * 0" in right else stated(True, 30)
    target = planted(tmp_path, "triton_attention", "softmax_attention", f"_triton_attention{helper}", right, wrong)
    texts = rejected(target, [case(B=1, T=130)], op=masks).values()
    found = {text.partition(":")[0] for some in texts for text in some}
    assert found >= set(seen.split()), found


def test_the_planted_faults_case_passes_without_one(tmp_path: Path) -> None:
    helper = "_triton_attention_gradients"
    target = planted(tmp_path, "triton_attention", "softmax_attention", helper, "scale * dX", "dX * scale")
    for window in (0, 30):
        assert not rejected(target, [case(B=1, T=130)], op=stated(True, window))


@pytest.mark.parametrize(
    ("change", "message"), [({"V": 257}, "K and V of at most 256"), ({"dtype": "fp64"}, "got torch.float64")]
)
def test_what_there_are_no_kernels_for_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message):
        rejected(TARGET, [case(T=2, **change)])
