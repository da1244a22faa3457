"""States of operators that state their forms: handed on, packed, empty, dropped, and against code that nobody here wrote."""

import importlib

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.emulated import LARGEST_PAIRS, stacks
from linverify.judge import Judge
from linverify.location import evidence
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import solve, stated
from linverify.reference.stated import pose_stated
from linverify.score import Score
from tests.identity_harness import close, tokens
from tests.kinds import suited

STATEFUL = sorted(n for n, o in registry.operators().items() if o.forms and o.state_axes)
FORMS = [(n, f) for n in STATEFUL for f in registry.operator(n).form_names]


def ask(operator: Operator, T: int = 37, **changes: object) -> Problem:
    case = Case(operator.name, 2, T, 2, 5, 5, dtype="fp64", state="normal", final_state=True, cotangent="both", seed=T)
    return draw.problem(suited(case.with_(**changes), operator), operator)


def ttt(**parameters: object) -> Operator:
    rebuild = registry.operator("ttt_linear").rebuild
    assert rebuild is not None
    return rebuild(norm=False, **parameters)


def test_there_are_such_operators() -> None:
    assert set(STATEFUL) >= {"lru", "rwkv4", "s4", "s4d"}


@pytest.mark.parametrize(("name", "form"), FORMS)
@pytest.mark.parametrize("given", [True, False])
def test_packed_sequences_keep_their_states_apart(name: str, form: str, given: bool) -> None:
    operator = registry.operator(name)
    lengths = (17, 0, 19, 1)
    p = ask(operator, B=1, lengths=lengths).with_(cotangents={}, wrt=())
    p = p if given else p.with_(initial_state=None)
    whole = stated(p, operator, form=form)
    function = getattr(importlib.import_module(f"linverify.impls.torch_{form}"), name)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    o, state = function(
        **p.tensors, scale=p.scale, initial_state=p.initial_state, output_final_state=True, cu_seqlens=ends
    )
    close(whole["o"], o)
    close(whole["state"], state)
    for n, (start, stop) in enumerate([(0, 17), (17, 17), (17, 36), (36, 37)]):
        own = None if p.initial_state is None else p.initial_state[n : n + 1]
        if start == stop:
            if own is not None:
                assert torch.equal(whole["state"][n : n + 1], own)
            continue
        alone = stated(tokens(p, operator, slice(start, stop), lengths=(), initial_state=own), operator, form=form)
        close(whole["o"][:, start:stop], alone["o"])
        close(whole["state"][n : n + 1], alone["state"])


@pytest.mark.parametrize("name", STATEFUL)
def test_the_state_of_an_empty_sequence_is_that_before_any_token(name: str) -> None:
    """To go on from it is to begin."""
    operator = registry.operator(name)
    empty = ask(operator, B=1, lengths=(0, 37)).with_(cotangents={}, wrt=(), initial_state=None)
    blank = solve(empty, operator)["state"][:1]
    p = ask(operator, B=1).with_(cotangents={}, wrt=(), initial_state=None)
    begun, gone_on = solve(p, operator), solve(p.with_(initial_state=blank), operator)
    close(begun["o"], gone_on["o"])
    close(begun["state"], gone_on["state"])


@pytest.mark.parametrize("fault", ["dropped", "kept"])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_that_is_dropped_or_handed_back_is_seen(name: str, fault: str) -> None:
    operator = registry.operator(name)
    p = ask(operator, T=5, dtype="bf16").with_(cotangents={}, wrt=())
    judge = Judge(operator, "cpu")
    answer = judge.answer(p)
    right = {n: t.to(torch.float32) for n, t in answer.reference.items()}
    assert judge.score(answer, "state", right["state"], "bf16").outcome == "pass"
    assert p.initial_state is not None
    wrong = p.initial_state if fault == "kept" else solve(p.with_(initial_state=None), operator)["state"].float()
    assert judge.score(answer, "state", wrong, "bf16").outcome == "reject"


@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
def test_ttt_is_resumed_behind_whole_mini_batches(form: str) -> None:
    operator = ttt(mini_batch_size=8)
    assert operator.resumes_every == 8
    p = ask(operator, T=37)
    whole = stated(p, operator, form=form)

    def halves(cut: int) -> tuple[Tensor, Tensor]:
        first = stated(tokens(p, operator, slice(0, cut)), operator, form=form)
        rest = stated(tokens(p, operator, slice(cut, 37), initial_state=first["state"]), operator, form=form)
        return torch.cat([first["o"], rest["o"]], 1), rest["state"]

    o, state = halves(24)
    close(whole["o"], o)
    close(whole["state"], state)
    with pytest.raises(AssertionError):
        close(whole["o"], halves(20)[0])


def test_ttt_with_mini_batches_of_one_token_has_the_state_of_the_delta_rule() -> None:
    operator, delta = ttt(mini_batch_size=1), registry.operator("delta_rule")
    p = ask(operator)
    beta = p.tensors["eta"][..., 0]
    q = p.with_(
        tensors={**{n: p.tensors[n] for n in "qkv"}, "beta": beta}, wrt=("q", "k", "v", "beta", "initial_state")
    )
    ours, theirs = solve(p, operator), solve(q, delta)
    for n in ("o", "state", "dq", "dk", "dv", "dinitial_state"):
        close(ours[n], theirs[n])


def test_a_state_domain_is_kept_by_every_draw() -> None:
    operator = registry.operator("rwkv4")
    for kind in ("normal", "large", "zero"):
        state = ask(operator, state=kind).initial_state
        assert state is not None
        assert float(state[:, 1].min()) >= 0
    assert float(ask(operator).initial_state[:, 0].min()) < 0  # type: ignore[index]


@pytest.mark.parametrize(("name", "kept"), [("rwkv4", True), ("softmax_attention", False), ("gau", False)])
def test_all_pairs_of_a_long_row_are_left_to_other_forms_where_each_channel_has_its_own(name: str, kept: bool) -> None:
    operator = registry.operator(name)
    T = int(LARGEST_PAIRS**0.5)
    case = suited(Case(name, 1, T, 1, 1, 2, dtype="fp32"), operator)
    long = pose_stated(draw.problem(case, operator), operator, "cpu")
    short = pose_stated(draw.problem(case.with_(T=16), operator), operator, "cpu")
    assert "naive" in {form for form, _ in stacks(short, "fp32")}
    assert ("naive" not in {form for form, _ in stacks(long, "fp32")}) == kept


@pytest.mark.parametrize("name", sorted(n for n, o in registry.operators().items() if o.state_axes))
def test_the_state_depends_on_all_inputs_but_the_readers(name: str) -> None:
    operator = registry.operator(name)
    gate = "mild" if operator.gated else "none"
    p = ask(operator, T=5, gate=gate)
    found = solve(p.with_(cotangents={"state": p.cotangents["state"]}), operator)
    without = tuple(n for n in p.wrt if float(found[f"d{n}"].abs().max()) == 0)
    assert without == operator.readers


@pytest.mark.parametrize("name", sorted(registry.operators()))
def test_an_error_is_located_whatever_the_axes(name: str) -> None:
    operator = registry.operator(name)
    judge, sizes = Judge(operator, "cpu"), {}
    for result in ("o", *(f"d{i.name}" for i in operator.inputs), *(["state"] if operator.state_axes else [])):
        axes = judge.axes(result)
        sizes = {a: n for n, a in enumerate(dict.fromkeys(axes.letters), 2)}
        found = torch.zeros([sizes[a] for a in axes.letters], dtype=torch.float64)
        found.view(-1)[-1] = 1.0
        error = axes.view(found)
        one = torch.ones_like(error)
        where = evidence(Score("reject", 2.0, "maximum", error, one, 0 * one, 0.5), result, axes, found).where
        assert [int(part.split("=")[1]) for part in where.split(", ")] == [sizes[a] - 1 for a in axes.letters]
