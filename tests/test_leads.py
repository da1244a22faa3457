"""Leads name the question that a wrong kernel answers, and say nothing where it answers none of them."""

from collections.abc import Mapping

import pytest
import torch

from linverify import registry
from linverify.case import Case, parse_case
from linverify.diagnosis import diagnose
from linverify.draw import problem
from linverify.dtype import BF16, TF32, round_to
from linverify.judge import Judge
from linverify.leads import lead
from linverify.location import locate
from linverify.probing import block_hint, shortened
from linverify.problem import Problem
from linverify.score import Score
from linverify.verdict import Status

WHOLE = "B2.T37.H3.K8.V6/fp32/state=normal/final_state=1/cotangent=both/scale=other/seed=3"
PACKED = "B1.T37.H3.K8.V6/fp32/lengths=0.7.30/seed=3"


def answered(operator: str, case: str, change: Mapping[str, object], wrong: list[str]) -> str:
    """The lead for a kernel that answers the changed question where it says so, and the asked one elsewhere."""
    op = registry.operator(operator)
    asked = problem(
        parse_case(f"{operator}/{case}{'/gate=production' if op.gated and 'lengths' not in case else ''}"), op
    )
    judge = Judge(op, "cpu")

    def reference(p: Problem) -> Mapping[str, torch.Tensor]:
        return judge.answer(p).reference

    right, other = reference(asked), reference(asked.with_(**changed(asked, change)))
    noise = torch.Generator().manual_seed(0)
    got = {n: t + 1e-6 * t.abs().mean() * torch.randn(t.shape, generator=noise) for n, t in right.items()}
    got |= {n: other[n] for n in wrong}
    return lead(asked, op, {n: t.float() for n, t in got.items()}, wrong, reference)


def chunk_sums_in_fp16(g: torch.Tensor, chunk: int) -> torch.Tensor:
    """Gates [B, T, ..] whose running sums within a chunk are what float16 holds of them."""
    out = torch.empty_like(g)
    for start in range(0, g.shape[1], chunk):
        sums = g[:, start : start + chunk].double().cumsum(1).half().double()
        out[:, start : start + chunk] = sums.diff(dim=1, prepend=torch.zeros_like(sums[:, :1])).float()
    return out


def changed(asked: Problem, change: Mapping[str, object]) -> dict[str, object]:
    """Keep what a problem holds beside the changed inputs."""
    inputs = {n: t for n, t in change.items() if n in asked.tensors}
    rest = {n: t for n, t in change.items() if n not in inputs}
    made = {n: t(asked.tensors[n]) for n, t in inputs.items() if callable(t)}
    rest = {n: t(getattr(asked, n)) if callable(t) else t for n, t in rest.items()}
    return {**rest, "tensors": {**asked.tensors, **made}}


@pytest.mark.parametrize(
    ("operator", "change", "wrong", "said"),
    [
        (
            "gla",
            {"initial_state": torch.zeros_like},
            ["o", "dq"],
            "o and dq are what the equations give with an initial",
        ),
        ("gla", {"g": torch.zeros_like}, ["o"], "o is what the equations give without g"),
        ("gla", {"g": lambda t: round_to(t, TF32)}, ["o"], "o is what the equations give with g rounded to TF32"),
        (
            "gla",
            {"g": lambda t: chunk_sums_in_fp16(t, 16)},
            ["o"],
            "o is what the equations give with running sums of g over chunks of 16 rounded to float16",
        ),
        ("kda", {"k": lambda t: round_to(t, BF16)}, ["o"], "o is what the equations give with k rounded to bfloat16"),
        ("delta_rule", {"beta": torch.ones_like}, ["dk"], "dk is what the equations give with beta = 1"),
        ("gla", {"scale": 1.0}, ["dq", "dk"], "dq and dk are what the equations give with scale 1 in place of"),
        ("gla", {"scale": 8**-0.5}, ["o"], "o is what the equations give with scale 0.3536, the default, in place of"),
        (
            "gla",
            {"cotangents": lambda c: {**c, "state": torch.zeros_like(c["state"])}},
            ["dk", "dv", "dg"],
            "dk, dv and dg are what the equations give without the upstream gradient of the final state",
        ),
        (
            "gla",
            {"initial_state": lambda s: s[:, :1].expand_as(s).contiguous()},
            ["o"],
            "o is what the equations give with initial_state of head 0 for every head",
        ),
        (
            "mamba2",
            {"dt": lambda x: x[:1].expand_as(x).contiguous()},
            ["o"],
            "o is what the equations give with dt of batch row 0 for every batch row",
        ),
        (
            "simple_gla",
            {"g": lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)},
            ["o", "state"],
            "o and the final state are what the equations give with g of the previous token at each token",
        ),
    ],
)
def test_the_question_that_is_answered_is_named(
    operator: str, change: Mapping[str, object], wrong: list[str], said: str
) -> None:
    found = answered(operator, WHOLE, change, wrong)
    assert found.startswith(said), found


def test_a_state_of_too_few_tokens_is_named() -> None:
    op = registry.operator("retention")
    asked = problem(parse_case(f"retention/{WHOLE}"), op)
    judge = Judge(op, "cpu")

    def reference(p: Problem) -> Mapping[str, torch.Tensor]:
        return judge.answer(p).reference

    short = asked.with_(tensors={n: t[:, :32] for n, t in asked.tensors.items()}, cotangents={}, wrt=())
    got = {"state": reference(short)["state"].float()}
    found = lead(asked, op, got, ["state"], reference)
    assert found == "the final state is what the equations give after 32 of 37 tokens"


@pytest.mark.parametrize(("step", "said"), [(5, "5 tokens early"), (-1, "1 token late")])
def test_results_in_the_wrong_place_are_named(step: int, said: str) -> None:
    op = registry.operator("gla")
    asked = problem(parse_case(f"gla/{WHOLE}"), op)
    judge = Judge(op, "cpu")

    def reference(p: Problem) -> Mapping[str, torch.Tensor]:
        return judge.answer(p).reference

    moved = reference(asked)["o"].roll(-step, 1)
    (moved[:, -step:] if step > 0 else moved[:, :-step]).zero_()
    assert lead(asked, op, {"o": moved.float()}, ["o"], reference) == f"o is the right one, {said}"


def test_boundaries_that_are_not_seen_are_named() -> None:
    found = answered("gla", PACKED, {"lengths": ()}, ["o"])
    assert found.startswith("o is what the equations give for one sequence: the boundaries")


def test_an_error_of_another_kind_and_nan_are_given_no_name() -> None:
    op = registry.operator("gla")
    asked = problem(parse_case(f"gla/{WHOLE}"), op)
    judge = Judge(op, "cpu")

    def reference(p: Problem) -> Mapping[str, torch.Tensor]:
        return judge.answer(p).reference

    right = reference(asked)
    assert lead(asked, op, {"o": right["o"].float() * 1.5}, ["o"], reference) == ""
    assert lead(asked, op, {"o": torch.full_like(right["o"], torch.nan)}, ["o"], reference) == ""
    assert lead(asked, op, {}, ["o"], reference) == ""


@pytest.mark.parametrize("name", sorted(registry.operators()))
def test_every_operator_can_be_asked_the_other_questions(name: str) -> None:
    op = registry.operator(name)
    sizes = "B2.T19.H2.K8.V8"
    asked = problem(parse_case(f"{name}/{sizes}/fp32/cotangent=o/seed=1"), op)
    judge = Judge(op, "cpu")
    count = 0

    def reference(p: Problem) -> Mapping[str, torch.Tensor]:
        nonlocal count
        count += 1
        return judge.answer(p).reference

    got = {"o": reference(asked)["o"].float() * 1.5 + 1}
    assert lead(asked, op, got, ["o"], reference) == ""
    assert count > 3


CASE = parse_case("gla/B1.T37.H1.K4.V6/fp32/scale=one")


def test_a_missing_mask_and_a_lost_hand_over_are_told_apart() -> None:
    def tail(case: Case) -> Status:
        return Status.VIOLATION if case.T % 16 else Status.PASS

    def handed(case: Case) -> Status:
        return Status.VIOLATION if case.T > 16 else Status.PASS

    def entering(case: Case) -> Status:
        return Status.VIOLATION if case.T > 16 or case.state == "normal" else Status.PASS

    odd = CASE.with_(T=17)
    assert block_hint(odd, "o", 0, tail) == (
        "o is wrong where the last block is partial: T=16 and T=32 are right, T=17 is not; "
        "its mask, or what it is filled up with, is wrong"
    )
    assert block_hint(CASE, "o", 0, tail).endswith(
        "T=37 and T=17 are not; its mask, or what it is filled up with, is wrong"
    )
    assert "what a block hands to the next" in block_hint(odd, "o", 0, handed)
    assert "what is read from the state that enters" in block_hint(odd, "o", 0, entering)
    assert block_hint(odd, "dk", 0, handed).endswith("the gradient of the state, as a block hands it to the one before")
    assert block_hint(odd, "dk", 0, entering).endswith("and from the gradient of the state that leaves it")
    assert "look at what a block hands to the next, and at" in block_hint(odd.with_(state="large"), "o", 0, handed)


def test_no_block_is_named_where_none_explains_the_fault() -> None:
    def always(_: Case) -> Status:
        return Status.VIOLATION

    def long(case: Case) -> Status:
        return Status.VIOLATION if case.T > 20 else Status.PASS

    def refused(case: Case) -> Status:
        return Status.VIOLATION if case.T == 17 else Status.PASS if case.T == 16 else Status.REFUSED

    assert block_hint(CASE, "o", 0, always) == ""
    assert block_hint(CASE, "o", 0, long) == ""
    assert block_hint(CASE.with_(T=17), "o", 0, refused) == ""
    assert block_hint(CASE.with_(T=32), "o", 0, always) == ""
    assert block_hint(CASE, "o", 24, lambda c: Status.VIOLATION if c.T % 16 else Status.PASS) == ""


def test_a_case_is_shortened_to_one_token_past_a_block() -> None:
    assert shortened(CASE, 1, lambda c: c.T % 16 != 0).T == 17
    assert shortened(CASE, 20, lambda c: c.T > 32).T == 33
    assert shortened(CASE, 1, lambda c: c.T > 36).T == 37


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([*range(15), *range(16, 31)], "right at the last token of every block of 16"),
        ([*range(1, 16), *range(17, 32)], "right at the first token of every block of 16"),
        ([*range(14), *range(16, 31)], "differs from the equations at t 0-13, 16-30"),
    ],
)
def test_what_comes_from_the_other_tokens_of_a_block(bad: list[int], said: str) -> None:
    op = registry.operator("linear_attention")
    error = torch.zeros(1, 33, 4, dtype=torch.float64)
    error[:, bad] = torch.randn(1, len(bad), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = Score("reject", 1e6, "the maximum", error, torch.full_like(error, 1e-7), torch.ones_like(error), 6.0)
    case = parse_case("linear_attention/B1.T33.H1.K4.V4/fp32")
    where = locate(score, Judge(op, "cpu").axes("dk"), 1)
    told = diagnose(score, "dk", case, op, where, (error + 1).squeeze(0)[None], timed=True, precision="fp32")
    assert said in told
