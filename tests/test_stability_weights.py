"""What a module's tokens weigh for each other, how far they spread it, and the largest derivative by a score."""

import math

import pytest
import torch
from torch import Tensor, nn

import tests.stability_mixers as own
from linverify.impls.blocks.gla import GLA
from linverify.impls.blocks.norm_attention import NormAttention
from linverify.impls.blocks.softmax import Softmax
from linverify.stability import module_dilution, weights
from linverify.stability.block import diagnose, guarded
from linverify.stability.layers import Stack, Training, layers
from linverify.stability.module_dilution import dilution
from linverify.stability.module_supremum import supremum
from linverify.stability.records import Finding
from tests.test_stability_faults import apart

D, T = 16, 16
SMALL = Training(layers=4, width=D, steps=10, batch=2, length=16)


def made(block: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return block(D).double().eval(), torch.randn(2, T, D, dtype=torch.float64)


def near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def shares(p: Tensor) -> Tensor:
    return p.abs() / p.abs().sum(-1, keepdim=True)


# Weights


@pytest.mark.parametrize("block", [own.Attention, own.Multihead])
def test_the_softmax_of_torch_s_attention_is_seen(block: type[nn.Module]) -> None:
    module, x = made(block)
    found = weights.token_weights(module, x)
    assert found.source == weights.SOFTMAX
    assert tuple(found.p.shape) == (2 * own.HEADS, T, T)
    assert near(found.p.sum(-1), torch.ones(2 * own.HEADS, T, dtype=torch.float64))
    assert not found.p.triu(1).any()
    if isinstance(module, own.Attention):
        q, k, _ = module.heads(x)
        hidden = own.causal(T, x) == 0
        expected = (q @ k.mT * (D // own.HEADS) ** -0.5).masked_fill(hidden, -math.inf).softmax(-1)
        assert near(found.p, expected.flatten(0, 1))


def test_unit_values_give_the_weights_of_what_is_linear_in_them() -> None:
    module, x = made(own.Projections)
    found = weights.token_weights(module, x)
    assert found.source == weights.VALUES
    q, k, _ = module.heads(x)  # type: ignore[operator]
    assert near(found.p, (q @ k.mT * own.causal(T, x)).flatten(0, 1))


def test_unit_values_are_found_in_a_fused_projection() -> None:
    module, x = made(GLA)
    found = weights.token_weights(module, x)
    assert found.source == weights.VALUES
    mixer = module.mixer
    h = module.first(x)  # type: ignore[operator]
    unit = torch.eye(T, dtype=torch.float64).expand(2, T, T)[:, :, None].expand(-1, -1, 4, -1)
    p = mixer.function(**{**mixer.operands(h), "v": unit}, **mixer.more(h))[0]  # type: ignore[operator, union-attr]
    assert near(found.p, p.transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize(("block", "part"), [(NormAttention, "mixer"), (own.Normed, "")])
def test_behind_a_norm_there_are_influences_only(block: type[nn.Module], part: str) -> None:
    module, x = made(block)
    found = weights.token_weights(module, x)
    assert (found.source, found.part) == (weights.INFLUENCE, part)
    assert not found.p.triu(1).any()
    assert bool((found.p.diagonal(0, 1, 2) > 0).all())


def test_influences_of_a_linear_mixture_are_its_weights() -> None:
    x = torch.randn(1, T, D, dtype=torch.float64)
    found = weights.token_weights(own.Average(), x)
    lower = own.causal(T, x)
    assert found.source == weights.INFLUENCE
    assert near(shares(found.p[0]), lower / lower.sum(-1, keepdim=True))


def test_influence_is_the_size_of_the_derivative() -> None:
    module, x = made(own.Normed)
    found = weights.token_weights(module, x[:1]).p[0]
    exact = torch.autograd.functional.jacobian(module, x[:1])[0, :, :, 0].square().sum((1, 3)).sqrt()
    ratio = (found / exact)[exact > 0]
    assert float(ratio.log().mean().exp()) == pytest.approx(1, abs=0.1)  # sixteen directions a token


def test_a_method_that_mixes_is_asked_itself_and_left_as_it_was() -> None:
    module, x = made(own.Divided)
    found = weights.token_weights(module, x)
    assert found.source == weights.METHOD
    q, k, _ = module.heads(x)  # type: ignore[operator]
    scores = torch.relu(q) @ torch.relu(k).mT * own.causal(T, x)
    assert near(found.p, (scores / (scores.sum(-1, keepdim=True) + 1e-6)).flatten(0, 1))
    assert "mix" not in vars(module)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("block", [own.Divided, own.Attention, own.Multihead, own.Projections, own.Normed, GLA])
def test_a_gpu_s_weights_and_suprema_are_those_of_a_cpu(block: type[nn.Module]) -> None:
    module, x = made(block)
    here, number = (
        weights.token_weights(module, x),
        guarded("D2", "supremum", "fp64", lambda: supremum(module, x)).number,
    )
    module, x = module.cuda(), x.cuda()
    there, found = weights.token_weights(module, x), guarded("D2", "supremum", "fp64", lambda: supremum(module, x))
    assert there.source == here.source
    assert near(there.p.cpu(), here.p)
    assert found.number == (None if number is None else pytest.approx(number, rel=0.01))


def test_a_block_that_mixes_nothing_is_told() -> None:
    with pytest.raises(ValueError, match="no part of it mixes tokens"):
        weights.token_weights(*made(own.Alone))


# Dilution


def stack(make: type[nn.Module], count: int = 4) -> Stack:
    torch.manual_seed(0)
    return Stack([make(D) for _ in range(count)], D, 64)


def test_dilution_is_told_layer_by_layer() -> None:
    model = stack(own.Attention)
    model.blocks[3].query.weight.data *= 40  # one layer that looks at single tokens
    found = dilution(model, Training(layers=4, width=D, length=64))
    _, entropy = found.curves
    assert len(entropy.y) == 4
    assert entropy.y[3] < 0.7 * min(entropy.y[:3])
    assert found.figures["entropy of the last"] == entropy.y[3]
    assert "weights by its softmax" in found.sentence


def test_uniform_weights_are_wholly_diluted_in_every_layer() -> None:
    model = stack(own.Attention)
    for block in model.blocks:
        block.query.weight.data.zero_()
    found = dilution(model, Training(layers=4, width=D, length=64))
    assert found.number == pytest.approx(1)
    assert found.figures["entropy"] == pytest.approx(1)
    assert found.figures["support"] == pytest.approx(1)


def test_what_are_influences_is_said() -> None:
    found = dilution(stack(NormAttention), SMALL)
    assert "weights by influence of mixer" in found.sentence
    assert "no attention weights" in found.sentence


@pytest.mark.parametrize(("length", "told"), [(4, "expected at least 8 tokens"), (16, "no part of it mixes tokens")])
def test_where_there_is_nothing_to_spread_the_reason_is_told(length: int, told: str) -> None:
    plan = Training(layers=4, width=D, length=length)
    found = guarded("D6", "dilution", "fp64", lambda: dilution(stack(own.Alone), plan))
    assert found.verdict == "unchecked"
    assert told in found.sentence


def test_layers_take_in_what_they_are_given() -> None:
    model = stack(own.Projections)
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    taken = module_dilution.inputs(model, tokens)
    assert torch.equal(model.blocks[0](taken[0]), taken[1])
    assert model.training


# Suprema


def searched(block: type[nn.Module]) -> Finding:
    return guarded("D2", "supremum", "fp64", lambda: supremum(*made(block)))


@pytest.mark.parametrize("block", [own.Attention, own.Multihead])
def test_a_softmax_reaches_a_quarter(block: type[nn.Module]) -> None:
    found = searched(block)
    assert (found.verdict, found.holds) == ("bounded", True)
    assert found.number == pytest.approx(1, abs=0.01)
    assert found.figures["sup"] == pytest.approx(0.25, abs=0.0025)
    assert "through its softmax" in found.sentence


def test_a_divisor_reaches_the_cap_that_its_eps_leaves() -> None:
    found = searched(own.Divided)
    assert (found.verdict, found.holds) == ("bounded by eps", True)
    assert 0.95 < (found.number or 0) < 1 + 1e-12
    assert found.figures["sup"] == pytest.approx(1e6, rel=0.05)


def test_a_divisor_without_its_eps_exceeds_what_its_operator_allows() -> None:
    found = searched(own.DividedWithoutEps)
    assert (found.verdict, found.holds) == ("unbounded", False)
    assert (found.number or 0) > 10
    assert "a second search found" in found.sentence
    assert "Z = " in found.shown_by


@pytest.mark.parametrize(
    ("block", "verdict", "slope"),
    [
        (own.Unnamed, "unbounded", -1),
        (own.WithEpsUnnamed, "bounded by eps", -1),
        (own.Signed, "unbounded", -2),
        (own.Plain, "bounded", 0),
    ],
)
def test_without_a_named_operator_growth_tells(block: type[nn.Module], verdict: str, slope: int) -> None:
    found = searched(block)
    assert (found.verdict, found.holds, found.bound) == (verdict, True, None)
    assert found.figures["slope"] == pytest.approx(slope, abs=0.05)
    assert "names no operator" in found.sentence


@pytest.mark.parametrize(
    ("block", "told"),
    [
        (own.Projections, "let its forward pass go through a method mix(scores, values)"),
        (own.NamesNothing, "operator = 'no_such_attention' of the part with mix: unknown operator"),
        (own.NamesNoRows, "operator = 'delta_rule' of the part with mix: it has no rows of weights by scores"),
        (own.MixesFlat, "expected scores of shape (B, H, T, T), got (4, 16, 16)"),
    ],
)
def test_what_cannot_be_searched_is_unchecked_with_the_reason(block: type[nn.Module], told: str) -> None:
    found = searched(block)
    assert found.verdict == "unchecked"
    assert told in found.sentence


def test_a_block_that_calls_a_kernel_is_told_which_one_to_diagnose() -> None:
    assert "linverify stability softmax_attention" in searched(Softmax).sentence


# Faults


def findings(block: type[nn.Module]) -> dict[str, Finding]:
    torch.manual_seed(0)
    found = list(diagnose(block(D), D, 0))
    trained: list[Stack] = []
    plan = Training(layers=4, width=D, steps=10, batch=2, length=32)
    found.append(layers(lambda: block(D), plan, lambda _, model: trained.append(model)))
    found.append(guarded("D6", "dilution", "fp64", lambda: dilution(trained[-1], plan)))
    return {f.diagnostic + f.dtype: f for f in found}


@pytest.mark.parametrize(
    ("sound", "faulty", "expected"),
    [
        (own.Positive, own.LastLouder, {"D1"}),
        (own.Positive, own.PositiveWithoutEps, {"D2"}),
        (own.Window, own.Elsewhere, {"D6"}),
    ],
)
def test_a_fault_moves_its_own_diagnostic(sound: type[nn.Module], faulty: type[nn.Module], expected: set[str]) -> None:
    before, after = findings(sound), findings(faulty)
    assert {f.diagnostic for n, f in before.items() if apart(f, after[n])} == expected


def test_dropout_is_no_disagreement_of_forward_and_reverse_mode() -> None:
    found = {f.diagnostic: f for f in diagnose(made(own.Multihead)[0].train(), D, 0)}
    assert found["D3"].holds
    assert found["D3"].verdict == "measured"


def test_a_block_that_takes_no_float64_is_measured_in_float32() -> None:
    torch.manual_seed(0)
    block = own.SingleOnly(D)
    found = {f.diagnostic + f.dtype: f for f in diagnose(block, D, 0)}
    assert {n for n, f in found.items() if f.verdict == "unchecked"} == {"D7fp32"}
    assert "no exact numbers to compare with" in found["D7fp32"].sentence
    wide = {f.diagnostic: f for f in diagnose(own.swapped(block), D, 0)}
    for name in ("D1", "D3"):
        assert found[f"{name}fp32"].number == pytest.approx(wide[name].number, rel=1e-3)
    trained = Stack([block], D, 64)
    spread = dilution(trained, SMALL)
    assert (spread.verdict, spread.dtype) == ("measured", "fp32")
