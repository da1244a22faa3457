"""The delta family's Triton kernels: right at every edge of a chunk, and a fault planted in any of them is seen."""

from pathlib import Path

import pytest

from linverify.case import Case
from linverify.implementation import declared
from linverify.impls import triton_delta
from linverify.problem import Refused
from linverify.registry import operator
from tests.judged_kernels import DEVICES, NEEDS_TRITON, planted, rejected, rounding_bf16, scored
from tests.kinds import suited

pytestmark = NEEDS_TRITON

# Around the chunk of 64 and the sub-chunk of 16, and sequences of every kind; K and V that no block divides.
LENGTHS: tuple[tuple[int, tuple[int, ...]], ...] = ((1, ()), (66, ()), (82, (17, 0, 1, 64)))
FULL = {"state": "normal", "final_state": True, "cotangent": "both"}


def cases(name: str, dtype: str, gate: str) -> list[Case]:
    op = operator(name)
    full = [
        Case(
            name, B=2 if T == 1 else 1, T=T, H=1 if T == 66 else 2, K=7, V=18, dtype=dtype, gate=gate, seed=T, lengths=lengths,
            scale="other", **FULL,
        )
        for T, lengths in LENGTHS
    ]  # fmt: skip
    wide = Case(name, B=1, T=20, H=1, K=80, V=64, dtype=dtype, gate=gate, seed=3, cotangent="o")
    return [suited(c, op) for c in (*full, wide)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("name", "gate"),
    [("delta_rule", "none"), ("gated_delta_rule", "reset"), ("gated_delta_product", "mild"), ("kda", "strong")],
)
def test_kernels_agree_with_the_reference(name: str, gate: str, dtype: str, device: str) -> None:
    if device == "cpu" and (dtype == "bf16" or (dtype == "fp16" and gate in ("none", "mild"))):
        pytest.skip("the interpreter multiplies bfloat16 wrongly; two operators speak for float16 there")
    assert not rejected(f"linverify.impls.triton_delta:{name}", cases(name, dtype, gate), device)


@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", triton_delta.OPERATORS)
def test_kernels_agree_where_they_are_widest(name: str, dtype: str, device: str) -> None:
    op = operator(name)
    sizes = ({"K": 256, "V": 64}, {"K": 128, "V": 128}, {"K": 64, "V": 256})
    whole = [Case(name, B=1, T=200, H=2, dtype=dtype, gate="mild", seed=1, **FULL).with_(**s) for s in sizes]
    assert not rejected(f"linverify.impls.triton_delta:{name}", [suited(c, op) for c in whole], device)


@pytest.mark.parametrize(("name", "gate"), [("delta_rule", "none"), ("gated_delta_rule", "strong"), ("kda", "mild")])
def test_bf16_is_rounded_where_a_kernel_may(name: str, gate: str, tmp_path: Path) -> None:
    helpers = (
        "_triton_rows",
        "_triton_delta_scores",
        "_triton_delta_channels",
        "_triton_delta_solve",
        "_triton_delta_carry",
    )
    target = rounding_bf16(tmp_path, "triton_delta", name, helpers)
    case = Case(name, B=1, T=40, H=1, K=40, V=36, dtype="bf16", gate=gate, **FULL)
    scores = scored(target, [suited(case.with_(seed=s), operator(name)) for s in (1, 2)])
    worst = {n: max(of[n].share for of in scores) for n in scores[0]}
    assert all(s.outcome == "pass" for of in scores for s in of.values()), worst
    assert max(worst.values()) > 0.1, "nothing was rounded"


@pytest.mark.parametrize(
    ("name", "helper", "right", "wrong", "seen"),
    [
        ("gated_delta_rule", "chunks", "(first + CHUNK, starts[sequence + 1])", "(first + CHUNK, starts[-1])", "dk"),
        ("gated_delta_rule", "chunks", "tl.minimum(stop - first, C)", "tl.minimum(stop - first + 1, C)", "state dk"),
        ("kda", "delta_gates", "(removes + row * K, X * tl.exp(sums),", "(removes + row * K, X,", "o state dk"),
        ("gated_delta_rule", "delta_gates", "last - sums", "last - 2.0 * sums", "state dk"),
        ("gated_delta_rule", "delta_solve", "X = X * since[None, :]", "X = X * 1.0", "o state dk"),
        ("gated_delta_rule", "delta_gates", "n, W, W), 0, reverse=True)", "n, W, W), 0)", "dg"),
        ("gated_delta_rule", "delta_scores", "t[:, None] >= t[None, :]", "t[:, None] > t[None, :]", "o dq dv"),
        ("gated_delta_rule", "delta_scores", "product(tl.trans(B), X)", "product(B, X)", "dk"),
        ("gated_delta_rule", "delta_solve", "mask=i < r,", "mask=i < r - 1,", "o state"),
        ("gated_delta_rule", "delta_solve", "dA -= product", "dA += product", "dk dbeta"),
        ("gated_delta_rule", "delta_carry", "= decayed(state, end, c, h, H, K, i, GATE) +", "= state +", "o state"),
        ("gated_delta_rule", "delta_carry", "dstate -= product(dY", "dstate += product(dY", "dv dinitial_state"),
        ("gated_delta_rule", "delta_carry", "-tl.sum(X * read, 1)", "tl.sum(X * read, 1)", "dbeta"),
        ("kda", "delta_channels", "store(P, product(Qd, Y)", "store(P, product(Xd, Y)", "o"),
        ("kda", "delta_channels", "range(a + 1, (", "range(a + 2, (", "dk dg"),
        ("kda", "delta_channels", "Q * dQ + X * (read - wrote)", "Q * dQ + X * (wrote - read)", "dg"),
    ],
)  # fmt: skip
def test_a_fault_in_any_kernel_is_seen(
    name: str, helper: str, right: str, wrong: str, seen: str, tmp_path: Path
) -> None:
    case = Case(name, B=1, T=72, H=1, K=7, V=5, dtype="fp32", gate="mild", seed=1, lengths=(2, 70), **FULL)
    target = planted(tmp_path, "triton_delta", name, f"_triton_{helper}", right, wrong)
    found = {text.partition(":")[0] for texts in rejected(target, [case]).values() for text in texts}
    assert found >= set(seen.split()), found


def test_the_planted_faults_case_passes_without_one(tmp_path: Path) -> None:
    for name in ("gated_delta_rule", "kda"):
        case = Case(name, B=1, T=72, H=1, K=7, V=5, dtype="fp32", gate="mild", seed=1, lengths=(2, 70), **FULL)
        target = planted(tmp_path, "triton_delta", name, "_triton_delta_solve", "mask=i < r,", "mask=(i < r),")
        assert not rejected(target, [case])


@pytest.mark.parametrize(
    ("change", "message"), [({"K": 257}, "K of at most 256"), ({"dtype": "fp64"}, "got torch.float64")]
)
def test_what_there_are_no_kernels_for_is_refused(change: dict[str, object], message: str) -> None:
    case = Case("delta_rule", B=1, T=2, H=1, K=4, V=4, dtype="fp32", cotangent="o").with_(**change)
    with pytest.raises(Refused, match=message):
        rejected("linverify.impls.triton_delta:delta_rule", [case])


def test_the_operators_are_marked() -> None:
    for name in triton_delta.OPERATORS:
        (claim,) = declared(getattr(triton_delta, name))
        assert (claim.operator, claim.form, claim.backend) == (name, "chunkwise", "triton")
