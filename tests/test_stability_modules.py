"""Modules: the blocks that come along, users' own, the layers' gradients over a training run."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import tests.stability_blocks as own
from linverify.errors import CannotCheckError, UsageError
from linverify.impls.blocks import (
    cosformer,
    delta_net,
    diag_attention,
    gla,
    norm_attention,
    normformer,
    one_plus_elu,
    performer,
    softmax,
)
from linverify.stability import text
from linverify.stability.block import diagnose
from linverify.stability.layers import Training, figures, layers, train
from linverify.stability.module_worker import answer
from linverify.stability.modules import finding, module
from linverify.stability.records import Finding
from linverify.target import parse

FILE = Path(__file__).with_name("stability_blocks.py")
SMALL = Training(layers=4, width=16, steps=10, batch=2, length=16)
BLOCKS = (
    softmax.Softmax,
    one_plus_elu.OnePlusElu,
    performer.Performer,
    cosformer.CosFormer,
    norm_attention.NormAttention,
    diag_attention.DiagAttention,
    normformer.NormFormer,
    gla.GLA,
    delta_net.DeltaNet,
)


def asked(name: str, settings: dict | None = None) -> dict:
    """What the worker answers, asked in this process."""
    training, threads = dataclasses.asdict(SMALL), torch.get_num_threads()
    return answer(
        {
            "kind": "file",
            "location": str(FILE),
            "function": name,
            "settings": settings or {},
            "training": training,
            "threads": threads,
        }
    )


def by_name(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {f.diagnostic + (f".{f.dtype}" if f.diagnostic == "D7" else ""): f for f in findings}


@pytest.mark.parametrize("block", BLOCKS, ids=[b.__name__ for b in BLOCKS])
def test_blocks_map_tokens_to_tokens_and_look_back_only(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made = block(32).double()
    x = torch.randn(2, 24, 32, dtype=torch.float64)
    later = x.clone()
    later[:, 20:] += 1
    if block is cosformer.CosFormer:  # its positions are shares of the length, which stays
        assert later.shape == x.shape
    y = made(x)
    assert y.shape == x.shape
    assert torch.equal(made(later)[:, :20], y[:, :20])
    assert not torch.equal(made(later)[:, 20:], y[:, 20:])


@pytest.mark.parametrize("block", BLOCKS, ids=[b.__name__ for b in BLOCKS])
def test_every_parameter_of_a_block_is_trained(block: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made = block(32)
    made(torch.randn(2, 24, 32)).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name
        assert bool(parameter.grad.isfinite().all()), name


def test_a_normformer_without_its_operations_is_the_pre_ln_block() -> None:
    torch.manual_seed(0)
    plain, bare = softmax.Softmax(32), normformer.NormFormer(32, operations=())
    names = dict(plain.named_parameters())
    assert names.keys() == dict(bare.named_parameters()).keys()
    bare.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 32)
    assert torch.equal(plain(x), bare(x))


def test_each_operation_of_a_normformer_is_there() -> None:
    x = torch.randn(2, 8, 32)
    torch.manual_seed(0)
    bare = normformer.NormFormer(32, operations=())
    for operation in (*normformer.OPERATIONS, normformer.RESIDUAL_SCALE):
        torch.manual_seed(0)
        with_it = normformer.NormFormer(32, operations=(operation,))
        with_it.load_state_dict(bare.state_dict(), strict=False)
        fresh = operation in ("head_scale", "residual_scale")  # learned factors of one at first
        assert torch.equal(with_it(x), bare(x)) is fresh
        more = set(dict(with_it.named_parameters())) - set(dict(bare.named_parameters()))
        assert more, operation
    with pytest.raises(ValueError, match="expected operations among head_scale"):
        normformer.NormFormer(32, operations=("post_norm",))


def test_the_gradient_of_a_head_s_scale_is_its_share_of_the_output() -> None:
    torch.manual_seed(0)
    made = normformer.NormFormer(32, operations=("head_scale",)).double()
    x = torch.randn(2, 8, 32, dtype=torch.float64)
    mixer = made.mixer
    y = mixer(x)
    upstream = torch.randn_like(y)
    (got,) = torch.autograd.grad(y, mixer.gamma, upstream, retain_graph=True)
    heads = mixer.read(x)  # gamma is one
    weight = mixer.out.weight.unflatten(1, (4, 8))  # [D, H, K]
    expected = torch.einsum("bthk,dhk,btd->h", heads, weight, upstream)
    assert torch.allclose(got, expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of heads=4, got 30"):
        softmax.Softmax(30)


def test_a_user_s_block_is_diagnosed_and_trained() -> None:
    found = module(parse(f"{FILE}:Block"), {"dim": 24}, SMALL)
    assert found is not None
    assert found.verdict == "pass"
    names = by_name(found.findings)
    assert names["D4"].verdict == "bounded by eps"  # the layer norm's
    assert names["D2"].verdict == "unchecked"
    assert "scores cannot be told from outside" in names["D2"].sentence
    assert "weights by influence" in names["D6"].sentence
    assert [len(c.x) for c in names["D6"].curves] == [4, 4]
    assert "width 24" in names["D5"].shown_by
    assert names["D5"].figures["last loss"] < names["D5"].figures["first loss"]
    assert [len(c.x) for c in names["D5"].curves] == [4, 10]
    assert names["D3"].figures["sigma"] > 1


@pytest.mark.parametrize("name", ["made", "instance"])
def test_functions_that_return_a_block_and_instances_will_do(name: str) -> None:
    (trained,) = (f for f in asked(name)["findings"] if f["diagnostic"] == "D5")
    assert "width 16" in trained["shown_by"]


def test_a_decorated_kernel_is_none_of_its_business() -> None:
    assert module(parse(f"{FILE}:declared"), {}, SMALL) is None


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("no_module", {}, "nothing fills q, k, v of no_module"),
        ("other", {}, "other returned a dict, expected an nn.Module"),
        ("Raises", {}, "raised ValueError: no such width"),
        ("Block", {"depth": 3}, "Block has no argument 'depth' to set; it has dim, factor"),
        ("instance", {"dim": 8}, "an instance, which takes no --set"),
        ("Absent", {}, "there is no 'Absent'"),
        ("Narrow", {}, "expected Narrow to map (B, T, D) = (2, 16, 16) to the same shape, got (2, 16, 8)"),
    ],
)
def test_what_is_no_block_is_told_in_one_line(name: str, settings: dict, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        asked(name, settings)


def test_a_block_that_raises_could_not_be_measured() -> None:
    with pytest.raises(
        CannotCheckError, match=r"Refuses raised RuntimeError for x of shape \(2, 16, 16\): no such tile"
    ):
        asked("Refuses")


def test_a_block_that_returns_more_is_measured_by_its_first_result() -> None:
    found = {f["diagnostic"]: f for f in asked("WithCache")["findings"]}
    assert found["D1"]["verdict"] == found["D5"]["verdict"] == found["D6"]["verdict"] == "measured"


def test_a_process_that_ends_is_a_target_that_could_not_be_measured(tmp_path: Path) -> None:
    file = tmp_path / "ends.py"
    file.write_text("import os\nclass Block:\n    def __init__(self, dim):\n        os._exit(3)\n")
    with pytest.raises(CannotCheckError, match="ended its process with code 3"):
        module(parse(f"{file}:Block"), {}, SMALL)


def test_a_block_of_another_shape_is_unchecked_with_the_reason() -> None:
    found = by_name(diagnose(own.Narrow(16), 16, 0))
    for name in ("D1", "D4", "D7.fp32"):
        assert found[name].verdict == "unchecked"
        assert "maps (B, T, D) = (2, 32, 16) to the same shape, got (2, 32, 8)" in found[name].sentence


def test_a_norm_without_eps_is_unbounded() -> None:
    torch.manual_seed(0)
    sound, found = by_name(diagnose(own.Block(16), 16, 0)), by_name(diagnose(own.WithoutEps(16), 16, 0))
    assert (sound["D4"].verdict, found["D4"].verdict) == ("bounded by eps", "unbounded")
    assert found["D4"].number == pytest.approx(-1, abs=0.05)
    assert found["D4"].holds  # nobody promised anything


def test_forward_and_reverse_mode_that_disagree_are_found() -> None:
    found = by_name(diagnose(own.NoTranspose(16), 16, 0))
    assert not found["D3"].holds
    assert "no transposes" in found["D3"].sentence
    assert {n for n, f in found.items() if not f.holds} == {"D3"}


def test_what_overflows_in_float16_alone_is_found() -> None:
    torch.manual_seed(0)
    found = by_name(diagnose(own.Overflows(16), 16, 0))
    assert {n for n, f in found.items() if not f.holds} == {"D7.fp16"}


def test_a_layer_with_another_scale_moves_the_mismatch() -> None:
    sound = layers(lambda: own.Block(16), SMALL)
    own.Loud.made = 0
    found = layers(lambda: own.Loud(16), SMALL)
    assert sound.figures["mismatch"] < 3
    assert found.figures["mismatch"] > 5 * sound.figures["mismatch"]
    assert "out of the healthy range: first layers over last" in found.sentence
    torch.manual_seed(0)
    loud, quiet = by_name(diagnose(own.Loud(16), 16, 0)), by_name(diagnose(own.Block(16), 16, 0))
    assert {n: f.verdict for n, f in loud.items()} == {n: f.verdict for n, f in quiet.items()}


def test_gradients_that_are_not_finite_are_a_fault() -> None:
    found = layers(lambda: own.Bursts(16), SMALL)
    assert not found.holds
    assert found.verdict == "unbounded"
    assert "not finite at step 0" in found.sentence


def test_the_same_seed_trains_alike() -> None:
    first, second = (train(lambda: own.Block(16), SMALL) for _ in range(2))
    assert torch.equal(first.losses, second.losses)
    assert torch.equal(first.gradients, second.gradients)
    assert tuple(first.gradients.shape) == (10, 4)


def test_the_figures_of_a_run_are_those_of_its_history() -> None:
    history = train(lambda: own.Block(16), SMALL)
    found = figures(history)
    settled = history.gradients[1:]
    assert found["mismatch"] == pytest.approx(float(settled[:, 0].median() / settled[:, -1].median()))
    assert found["max"] == float(settled.max())
    assert found["tail"] == pytest.approx(found["q99"] / found["q50"])
    assert found["spread"] == pytest.approx(float((settled.std(0) / settled.mean(0)).median()))


def test_the_text_is_real_and_windows_are_followed_by_their_bytes() -> None:
    source = text.text()
    assert len(source) > 100_000
    assert b"statement" in bytes(source.tolist())
    generator = torch.Generator().manual_seed(0)
    tokens, following = text.windows(source, 3, 8, generator)
    assert torch.equal(tokens[:, 1:], following[:, :-1])


def test_no_text_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text.importlib, "import_module", lambda _: (_ for _ in ()).throw(ImportError()))
    with pytest.raises(CannotCheckError, match=r"no pydoc_data\.topics"):
        text.text()


def test_a_record_of_a_finding_is_read_back() -> None:
    made = layers(lambda: own.Block(16), SMALL)
    assert finding(json.loads(json.dumps(dataclasses.asdict(made)))) == made
    assert math.isfinite(made.number or math.inf)
