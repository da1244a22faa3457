"""Gradients that overflow float32: whatever a kernel gives there is right, and what it gives elsewhere is judged as ever."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case, parse_case
from linverify.dtype import FP32
from linverify.judge import Judge
from linverify.problem import Problem
from linverify.score import Answer, Unjudgeable

KERNEL = Path(__file__).parent / "zoo" / "kernels" / "mlstm.py"
OPERATOR = registry.operator("mlstm")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The zoo's mLSTM in chunks of 8 tokens: its normaliser is at least 1e-38."""
    folder = tmp_path_factory.mktemp("kernel")
    path = folder / "mlstm_chunks_of_8.py"
    path.write_text(KERNEL.read_text(encoding="utf-8").replace("CHUNK = 16\n", "CHUNK = 8\n"), encoding="utf-8")
    sys.path.insert(0, str(KERNEL.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(KERNEL.parent))
        sys.modules.pop("pack", None)
    return module


@pytest.fixture(scope="module")
def asked() -> tuple[Problem, Judge, Answer]:
    """Queries of zero under input gates of about 100: with exp(-m) for a divisor their gradient is of the order of exp(100)."""
    case = Case("mlstm", 2, 16, 2, 16, 12, dtype="fp32", regime="zeros", cotangent="o", seed=3)
    problem = draw.problem(case, OPERATOR)
    judge = Judge(OPERATOR, "cpu")
    return problem, judge, judge.answer(problem)


def gradients(kernel: ModuleType, problem: Problem) -> dict[str, Tensor]:
    leaves = {n: t.clone().requires_grad_() for n, t in problem.tensors.items()}
    o = kernel.mlstm(**leaves, scale=problem.scale)
    return dict(zip(leaves, torch.autograd.grad(o, list(leaves.values()), problem.cotangents["o"]), strict=True))


def overflowing(answer: Answer) -> Tensor:
    return answer.reference["dq"].abs() > FP32.largest


def test_the_reference_is_the_mathematics_not_float32s(asked: tuple[Problem, Judge, Answer]) -> None:
    problem, _, answer = asked
    beyond = overflowing(answer)
    assert bool(beyond.any())
    assert not bool(beyond.all())
    assert bool((problem.tensors["q"][beyond.any(-1)] == 0).all())


def test_a_floor_where_the_divisor_underflows_is_no_mistake(
    kernel: ModuleType, asked: tuple[Problem, Judge, Answer]
) -> None:
    problem, judge, answer = asked
    found = gradients(kernel, problem)
    assert bool((found["q"][overflowing(answer)].abs() > 1e30).any())
    assert judge.score(answer, "dq", found["q"], "fp32").outcome == "pass"
    infinite = torch.where(overflowing(answer), torch.inf, found["q"])
    assert judge.score(answer, "dq", infinite, "fp32").outcome == "pass"


def test_an_error_beside_an_overflow_is_seen(kernel: ModuleType, asked: tuple[Problem, Judge, Answer]) -> None:
    problem, judge, answer = asked
    found = gradients(kernel, problem)["q"]
    ordinary = (~overflowing(answer)).any(-1).nonzero()[-1].tolist()
    wrong = found.clone()
    wrong[tuple(ordinary)] *= 1 + 2e-4
    score = judge.score(answer, "dq", wrong, "fp32")
    assert score.outcome == "reject", score.share
    lost = found.clone()
    lost[tuple(ordinary)] = torch.nan
    assert judge.score(answer, "dq", lost, "fp32").outcome == "reject"


def test_a_gradient_that_no_float32_kernel_can_hold_is_left_unjudged(kernel: ModuleType) -> None:
    """df is 0 * inf there: a query of zero times a cotangent over exp(-100). Only realisations can tell that from a mistake."""
    case = parse_case("mlstm/B2.T17.H2.K16.V20/fp16/regime=zeros/cotangent=o/scale=one/seed=1753")
    problem, judge = draw.problem(case, OPERATOR), Judge(OPERATOR, "cpu")
    answer, found = judge.answer(problem), gradients(kernel, problem)["f"]
    assert not bool(found.isfinite().all())
    assert bool(answer.reference["df"].isfinite().all())
    with pytest.raises(Unjudgeable, match="df"):
        judge.score(answer, "df", found, "fp16")

    def twice(parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
        return parts[0]["df"] - parts[1]["df"]

    with pytest.raises(Unjudgeable, match="relation"):
        judge.relation(
            [(answer, {"df": found}), (answer, {"df": answer.reference["df"].float()})], twice, "bth", "fp16"
        )


def test_what_correct_kernels_hold_is_no_number_without_an_excuse(asked: tuple[Problem, Judge, Answer]) -> None:
    problem, judge, answer = asked
    lost = torch.full_like(problem.tensors["v"], torch.nan)
    assert judge.score(answer, "o", lost, "fp32").outcome == "reject"

    def twice(parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
        return parts[0]["o"] - parts[1]["o"]

    sides = ((answer, {"o": lost}), (answer, {"o": answer.reference["o"].float()}))
    assert judge.relation(sides, twice, "bthv", "fp32").outcome == "reject"
