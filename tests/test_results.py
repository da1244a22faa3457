"""Results come back as computed, in every layout, and every broken contract is named."""

import pytest
import torch

from linverify.binding import bind
from linverify.problem import Call, Program
from linverify.runner import Runner
from linverify.target import parse
from tests.worker_harness import KERNELS, OPERATOR, Everything, problem, with_gradients


@pytest.fixture(scope="module")
def target():
    everything = Everything()
    yield everything
    everything.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_results_arrive_as_computed(target, dtype):
    asked = with_gradients()
    tensors = {n: t.to(dtype) for n, t in asked.tensors.items()}
    cotangents = {"o": torch.ones(2, 5, 3, 16, dtype=dtype)}
    (result,) = target.ask("good", asked.with_(tensors=tensors, cotangents=cotangents, final_state=True, scale=0.5))
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    scores = torch.einsum("bthk,bshk->bhts", leaves["q"], leaves["k"]).tril()
    o = torch.einsum("bhts,bshv->bthv", scores, leaves["v"]) * 0.5
    o.backward(cotangents["o"])
    assert torch.equal(result.o, o)
    assert {n: torch.equal(g, leaves[n].grad) for n, g in result.grads.items()} == dict.fromkeys("qkv", True)
    assert result.state.shape == (2, 3, 8, 16)
    assert result.state.dtype == torch.float32
    assert result.breaches == ()
    assert result.seconds.keys() == {"forward", "backward"}


def test_initial_state_is_passed_and_differentiated(target):
    asked = with_gradients(initial_state=torch.ones(2, 3, 8, 16), final_state=True)
    asked = asked.with_(wrt=("q", "k", "v", "initial_state"), cotangents={"state": torch.ones(2, 3, 8, 16)})
    (result,) = target.ask("good", asked)
    assert torch.equal(result.grads["initial_state"], torch.ones(2, 3, 8, 16))
    assert torch.equal(result.grads["q"], torch.zeros(2, 5, 3, 8))  # the state does not depend on q: None is zeros
    assert result.breaches == ()


def test_value_first_states_come_back_in_canonical_order(target):
    target.runner("value_first", state_v_first=True)
    start = torch.randn(2, 3, 8, 16)
    (result,) = target.ask("value_first", problem(final_state=True, initial_state=start))
    asked = problem().tensors
    assert result.breaches == ()
    torch.testing.assert_close(result.state, torch.einsum("bthk,bthv->bhkv", asked["k"], asked["v"]) + start)


@pytest.mark.parametrize(
    ("name", "kind", "words", "changes"),
    [
        ("only_o", "wrong_length", "got o alone", {"final_state": True}),
        ("three", "wrong_length", "tuple of 3", {}),
        ("as_list", "wrong_type", "list of 2", {}),
        ("nothing", "wrong_type", "got None", {}),
        ("none_state", "wrong_type", "state: expected a tensor, got None", {"final_state": True}),
        ("wrong_shape", "wrong_shape", "expected [2, 5, 3, 16], got [2, 4, 3, 16]", {}),
        ("wrong_dtype", "wrong_dtype", "expected float32, got float64", {}),
        ("on_meta", "wrong_type", "meta", {}),
        ("half_state", "wrong_dtype", "state: expected float32, got float16", {"final_state": True}),
        ("mutates", "mutated_input", "input k was changed", {}),
    ],
)
def test_breach(target, name, kind, words, changes):
    (result,) = target.ask(name, problem(**changes))
    assert [b.kind for b in result.breaches] == [kind]
    assert words in result.breaches[0].message


def test_breaches_of_gradients(target):
    (result,) = target.ask("no_key_gradient", with_gradients())
    assert [(b.kind, b.message) for b in result.breaches] == [("missing_gradient", "the gradient of k is None")]
    assert result.grads.keys() == {"q", "v"}
    (result,) = target.ask("no_gradients", with_gradients())
    assert not result.offers_gradients
    assert result.breaches == ()
    (result,) = target.ask("scales_cotangent", with_gradients())
    assert [b.kind for b in result.breaches] == ["mutated_input"]


def test_writing_beyond_a_view_is_seen(target):
    (result,) = target.ask("writes_beyond", Call(problem(), layout="offset"))
    assert [b.kind for b in result.breaches] == ["mutated_input"]
    assert "around it" in result.breaches[0].message


@pytest.mark.parametrize("name", ["leaves_gap", "new_empty_gap"])
def test_unwritten_output_shows(target, name):
    (nan,) = target.ask(name, Call(problem(), poison="nan"))
    (large,) = target.ask(name, Call(problem(), poison="large"))
    first = (slice(None), 0) if name == "leaves_gap" else (..., 0)
    assert nan.o[first].isnan().all()
    assert (large.o[first] > 2.0**100).all()
    assert not nan.o[:, 1:, :, 1:].isnan().any()


def test_layouts_have_their_strides(target):
    def strides(layout, asked):
        facts = target.ask("strides", Call(asked, layout=layout))[0].o[0, -1, 0].int().tolist()
        return facts[:4], facts[4:8], facts[8], facts[9:13]

    asked = problem(tensors={**problem().tensors, "v": torch.randn(2, 5, 3, 16)})
    assert strides("contiguous", asked)[0] == [120, 24, 8, 1]
    q, k, _, v = strides("strided", asked)  # T = 5 is odd: q steps along the last axis, k along time
    assert q == [6 * 4 * 16, 4 * 16, 16, 2]
    assert k == [10 * 4 * 24, 2 * 4 * 24, 24, 1]
    assert v[3] == 2
    assert strides("offset", asked)[2] == 16
    assert strides("offset", asked)[0] == [120, 24, 8, 1]
    repeated = {n: t[:1].expand_as(t).contiguous() for n, t in asked.tensors.items()}
    assert strides("expanded", problem(tensors=repeated))[0] == [0, 24, 8, 1]
    heads = {n: t[:1, :, :1].expand(1, 5, 3, -1).contiguous() for n, t in asked.tensors.items()}
    assert strides("expanded", problem(tensors=heads))[0][2] == 0


@pytest.mark.parametrize("layout", ["strided", "offset", "expanded"])
def test_layouts_change_no_value(target, layout):
    asked = with_gradients(final_state=True)
    asked = asked.with_(tensors={n: t[:1].expand_as(t).contiguous() for n, t in asked.tensors.items()})
    (plain,) = target.ask("good", asked)
    (laid,) = target.ask("good", Call(asked, layout=layout, cotangent_layout=layout))
    for name, tensor in plain.named().items():
        torch.testing.assert_close(laid.named()[name], tensor)
    assert laid.breaches == ()


def test_cotangents_have_their_strides(target):
    def strides(layout, cotangent):
        asked = problem(cotangents={"o": cotangent}, wrt=("q", "k", "v"))
        return (
            target.ask("cotangent_strides", Call(asked, cotangent_layout=layout))[0].grads["q"].reshape(-1)[:4].tolist()
        )

    random = torch.randn(2, 5, 3, 16)
    assert strides("contiguous", random) == [240, 48, 16, 1]
    assert strides("strided", random)[3] == 2
    assert strides("expanded", torch.ones(2, 5, 3, 16)) == [0, 0, 0, 0]
    assert strides("expanded", random[:1].expand_as(random)) == [0, 48, 16, 1]


def test_reread_sees_an_overwritten_result(target):
    other = problem(tensors={n: t + 1 for n, t in problem().tensors.items()})
    first, second, again = target.ask("static_buffer", problem(), other, reread=True)
    assert not torch.equal(first.o, again.o)
    assert torch.equal(second.o, again.o)
    first, _, again = target.ask("good", problem(), other, reread=True)
    assert torch.equal(first.o, again.o)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "expanded"])
def test_in_place_keeps_the_memory(target, layout):
    same = {n: t[:1].expand_as(t).contiguous() for n, t in problem().tensors.items()}
    before, after = problem(tensors=same), problem(tensors={n: 2 * t for n, t in same.items()})
    first, second = target.ask(
        "first_inputs_forever", *(Call(p, layout=layout) for p in (before, after)), in_place=True
    )
    assert torch.equal(first.o, second.o)  # the stale cache is keyed on the address
    first, second = target.ask("good", *(Call(p, layout=layout) for p in (before, after)), in_place=True)
    torch.testing.assert_close(second.o, 8 * first.o)
    assert second.breaches == ()


def test_settings_and_seeds_are_put_back(target):
    first, second = target.ask("reports_settings", problem(), problem())
    assert torch.equal(first.o, second.o)
    runner = Runner(parse(str(KERNELS) + "::settings_leak"), device="cpu")
    with runner:
        runner.bind(bind(OPERATOR, runner.describe().functions[0]), OPERATOR)
        second = runner.run(Program((Call(problem()), Call(with_gradients()))), time_limit=30)[1]
    assert second.grads.keys() == {"q", "k", "v"}
    assert second.breaches == ()


def test_large_tensors_travel(target):
    tensors = {"q": torch.randn(1, 256, 8, 64), "k": torch.randn(1, 256, 8, 64), "v": torch.randn(1, 256, 8, 1024)}
    (result,) = target.ask("good", problem(tensors=tensors))
    assert result.o.shape == (1, 256, 8, 1024)
