"""Relations between results of several problems: judged by realisations of all of them, and held to the references themselves."""

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case, parse_case
from linverify.dtype import format_of, round_to
from linverify.judge import Judge
from linverify.score import Answer


def small(length: int = 20) -> tuple[Judge, Answer]:
    operator = registry.operator("gla")
    by = Judge(operator, "cpu")
    return by, by.answer(draw.problem(Case("gla", 1, length, 2, 8, 6, dtype="bf16", gate="mild", seed=1), operator))


def changed(x: Tensor, value: float) -> Tensor:
    y = x.clone()
    y[0, 5, 1, 3] = value
    return y


def halves() -> tuple[Judge, list[tuple[Answer, dict[str, Tensor]]]]:
    """Three problems of bf16 GLA: v, w and v + w, each with a result rounded as a correct kernel would."""
    by, first = small()
    p = first.problem
    w = torch.randn(p.tensors["v"].shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    total = (p.tensors["v"].double() + w.double()).bfloat16()
    v = (total.double() - w.double()).bfloat16()
    answers = [by.answer(p.with_tensors(v=x)) for x in (v, w, (v.double() + w.double()).float())]
    return by, [(a, {"o": round_to(a.reference["o"], format_of(torch.bfloat16)).bfloat16()}) for a in answers]


def superposed(parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    return parts[0]["o"] + parts[1]["o"] - parts[2]["o"]


def test_a_relation_that_holds_passes_and_a_broken_one_does_not() -> None:
    by, parts = halves()
    assert by.relation(parts, superposed, "bthv", "bf16").outcome == "pass"
    last, o = parts[2][0], parts[2][1]["o"]
    for broken in (o * 1.1, changed(o, 30.0), changed(o, float("nan"))):
        score = by.relation([*parts[:2], (last, {"o": broken})], superposed, "bthv", "bf16")
        assert score.outcome == "reject"
        assert score.share > 1


def test_a_wrong_relation_is_the_property_s_fault() -> None:
    by, parts = halves()

    def lopsided(r: Sequence[Mapping[str, Tensor]]) -> Tensor:
        return r[0]["o"] + r[1]["o"] - 1.01 * r[2]["o"]

    with pytest.raises(ValueError, match="does not hold between the references"):
        by.relation(parts, lopsided, "bthv", "bf16")
    exactly = [
        (a, {"o": a.reference["o"]}) for a, _ in parts
    ]  # no error to explain: the relation is looked at all the same
    with pytest.raises(ValueError, match="does not hold between the references"):
        by.relation(exactly, lopsided, "bthv", "bf16")
    assert by.relation(exactly, lambda r: r[0]["o"] - r[0]["o"], "bthv", "bf16").screened


def test_a_problem_that_appears_twice_is_realised_twice() -> None:
    by, answer = small(33)
    results = [(answer.reference["o"] * (1 + d)).bfloat16() for d in (0.0, 2.0**-9)]

    def difference(r: Sequence[Mapping[str, Tensor]]) -> Tensor:
        return r[0]["o"] - r[1]["o"]

    score = by.relation([(answer, {"o": o}) for o in results], difference, "bthv", "bf16")
    seeds = {seed for _, seed, _ in answer.members}
    assert len(seeds) >= 2
    assert 0 in seeds
    # Equal realisations would cancel and leave the output's own rounding; apart, they leave that of two kernels.
    alone = by.score(answer, "o", results[1], "bf16")
    assert float((score.sigma / alone.sigma).median()) > 1
    drawn = [answer.members[key] for key in itertools.islice(answer.members, 2)]
    first, second = (members[0].train["o"] for members in drawn)
    assert not torch.equal(first, second)


def test_two_forms_of_one_problem_do_not_lose_the_same() -> None:
    """RWKV-4 step by step adds a constant to a running maximum: in one binade it is rounded alike each time, which adds up."""
    case = "regime=unit/state=large/final_state=1/cotangent=state/lengths=64.0.0.0/scale=one/seed=1324"
    stated = registry.operator("rwkv4")
    problem, by = draw.problem(parse_case(f"rwkv4/B1.T64.H1.K20.V12/fp32/{case}"), stated), Judge(stated, "cpu")
    answer, found = by.answer(problem), list[Tensor]()
    assert problem.initial_state is not None
    for form in ("recurrent", "naive"):
        leaves = {n: x.clone().requires_grad_() for n, x in problem.tensors.items()}
        _, state = stated.forms[form]({**leaves, "initial_state": problem.initial_state[:1]}, {"T": 64}, 1.0)
        found.append(torch.autograd.grad((state * problem.cotangents["state"][:1]).sum(), leaves["k"])[0])
    parts = [(answer, {"dk": dk}) for dk in found]
    score = by.relation(parts, lambda r: r[0]["dk"] - r[1]["dk"], "btv", "fp32")
    assert (score.outcome, score.share < 0.6) == ("pass", True)
    broken = [parts[0], (answer, {"dk": found[1] * (1 + 1e-3)})]
    assert by.relation(broken, lambda r: r[0]["dk"] - r[1]["dk"], "btv", "fp32").outcome == "reject"


def test_every_call_of_a_relation_rounds_anew() -> None:
    # the errors of independent calls add up in squares; draws that they shared would cancel, as the relation itself does
    operator = registry.operator("rwkv7")
    by = Judge(operator, "cpu")
    whole = draw.problem(
        Case("rwkv7", 1, 66, 2, 4, 6, dtype="fp32", gate="production", regime="positive", seed=3), operator
    )
    v = whole.tensors["v"]
    own = torch.rand(v.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    answers = [by.answer(whole.with_tensors(v=x)) for x in (v * own, v * ~own, v)]
    parts = [(a, {"o": (a.reference["o"] * (1 + 2.0**-20)).float()}) for a in answers[:2]]
    last = answers[2]
    score = by.relation([*parts, (last, {"o": last.reference["o"].float()})], superposed, "bthv", "fp32")
    alone = [by.score(a, "o", (a.reference["o"] * (1 + 2.0**-10)).float(), "fp32").sigma for a in answers]
    together = torch.stack(alone).square().sum(0).sqrt()
    assert float((score.sigma / together).median()) > 0.5
