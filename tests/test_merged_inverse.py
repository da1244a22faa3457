"""Inverses merged of blocks in TF32: what a merge loses is dense, and the model has it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.backward import merged
from linverify.case import parse_case
from linverify.dtype import FP64, TF32
from linverify.judge import Judge
from linverify.noise import SPREAD, Noise
from linverify.recipe import Recipe, Stack, exact, family, uniform
from tests.scripts import load

load("correct_runs")
kernels, results = load("correct_kernels"), load("correct_results")

# Keys that are nearly equal: what is written last is all that is left, and chunks of 40 begin where none of the model's did.
COLLINEAR = (
    "kda/B1.T240.H4.K64.V32/fp32/regime=collinear/state=normal/final_state=1/cotangent=state/scale=sqrt/seed=272"
)
BLOCKED = kernels.Kernel(
    form="chunkwise",
    operands="tf32rn",
    values="tf32rn",
    blocks="tf32rn",
    chunk=40,
    sums="split",
    solver="blocked",
    solve="tf32",
    gate="chunk",
)


def noise(recipe: Recipe, *, dither: bool) -> Noise:
    generator = torch.Generator().manual_seed(3)
    return Noise((recipe,), 1, 64, dither=dither, generator=generator, device=torch.device("cpu"))


def triangle(size: int) -> Tensor:
    """What nearly equal keys and strengths near one make of a chunk: its inverse falls off at once."""
    strengths = 1 - 0.1 * torch.rand(64, size, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.eye(size, dtype=torch.float64) + strengths * torch.ones(size, size, dtype=torch.float64).tril(-1)


@pytest.mark.parametrize("size", [8, 16, 24, 40, 48, 64])
def test_without_rounding_it_is_the_inverse_and_so_is_its_gradient(size: int) -> None:
    """Strengths of one and a half, whole numbers upstream: all are small multiples of a power of two, and exact."""
    generator = torch.Generator().manual_seed(1)
    strengths = 1 - 0.5 * torch.randint(2, (64, size, 1), generator=generator, dtype=torch.float64)
    matrix = torch.eye(size, dtype=torch.float64) + strengths * torch.ones(size, size, dtype=torch.float64).tril(-1)
    given, direct = (matrix.clone().requires_grad_() for _ in range(2))
    found = merged(given, noise(dataclasses.replace(exact(64), merge=FP64), dither=False))
    wanted = torch.linalg.inv(direct)
    assert torch.equal(found, wanted)
    upstream = torch.randint(-8, 9, found.shape, generator=generator, dtype=torch.float64).tril(-1)
    one, other = torch.autograd.grad(found, given, upstream)[0], torch.autograd.grad(wanted, direct, upstream)[0]
    assert torch.equal(one.tril(-1), other.tril(-1))


def test_what_lies_between_two_blocks_is_off_by_as_much_everywhere() -> None:
    """T2 dM T1 is dense, though what it is part of falls off within a few tokens."""
    matrix = triangle(32)
    recipe = dataclasses.replace(uniform("tf32", 64, TF32), merge=TF32)
    error = merged(matrix, noise(recipe, dither=True)) - torch.linalg.inv(matrix)
    assert float(error[:, :16, :16].abs().max()) < 1e-13
    far = error[:, 20:, :12]
    unit = SPREAD * TF32.unit_roundoff
    # M's rows are constant: neighbouring elements of dM (variance unit^2 / 12 about the mean that truncation has) are
    # subtracted by T1, then neighbouring rows by T2
    expected = 2.0 * unit / 12**0.5
    assert float(far.std(0).mean()) == pytest.approx(expected, rel=0.15)
    # the inverse itself is next to nothing there: rounded element by element it would be as good as exact
    assert float(torch.linalg.inv(matrix)[:, 20:, :12].abs().max()) * unit < 1e-3 * expected


def shares(monkeypatch: pytest.MonkeyPatch, *, known: bool = True) -> dict[str, tuple[str, float]]:
    def unmerged(*given: Any, **kinds: Any) -> tuple[Stack, ...]:
        stacks = [
            s for s in family(*given, **kinds) if (s[0].chunk, s[0].lead) in ((16, 0), (16, 8), (64, 0), (64, 32))
        ]
        return tuple(tuple(dataclasses.replace(r, merge=None) for r in s[-1:]) for s in stacks)

    if not known:
        monkeypatch.setattr("linverify.judge.family", unmerged)
    operator = registry.operator("kda")
    problem, by = draw.problem(parse_case(COLLINEAR), operator), Judge(operator, "cpu")
    found, answer = results.results(problem, operator, BLOCKED), by.answer(problem)
    scores = {n: by.score(answer, n, found[n], "tf32") for n in ("dv", "dbeta")}
    return {n: (s.outcome, s.share) for n, s in scores.items()}


def test_merges_in_tf32_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(outcome == "pass" and share < 0.8 for outcome, share in shares(monkeypatch).values())


def test_they_would_be_one_if_merges_were_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(monkeypatch, known=False)["dv"][0] == "reject"


def test_a_merge_that_is_off_by_a_twentieth_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.Chunked.inverse

    def wrong(self: Any, matrix: Tensor) -> Tensor:
        found = right(self, matrix)
        between = torch.ones(found.shape[-2:])
        between[32:, :32] = 0.95 if found.shape[-1] == BLOCKED.chunk else 1.0
        return found * between

    monkeypatch.setattr(kernels.Chunked, "inverse", wrong)
    assert {outcome for outcome, _ in shares(monkeypatch).values()} == {"reject"}
