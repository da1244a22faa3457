"""The benchmark that trains every block: its runs are those of `linverify stability`, and a GPU could capture them."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from linverify.stability.layers import History, Trainer, Training, train
from tests.scripts import BENCHMARKS, load

script = load("stability_training")
graphed = script.graphed
EPS = torch.finfo(torch.float32).eps
SMALL = Training(layers=2, width=16, steps=24, batch=2, length=16)


class Transfers(TorchDispatchMode):
    """Notes what copies tensors from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.device for x in tree_leaves(args) if isinstance(x, torch.Tensor) and x.dim()}
        if isinstance(out, torch.Tensor) and given - {out.device}:
            self.found.append(f"{func} {tuple(out.shape)}")
        return out


def beyond_rounding(found: torch.Tensor, expected: torch.Tensor, moved: float = 0.0) -> torch.Tensor:
    """Where runs differ by more than one float32 rounding of every step: the optimizer's two forms round an update apart.

    Where a rounding of the parameters moves the results by more than their own rounding, ``moved`` says by what share.
    """
    return (found - expected).abs() > SMALL.steps * max(EPS, moved) * expected.abs()


@pytest.mark.parametrize("name", ["softmax (Pre-LN)", "DeltaNet"])
def test_runs_side_by_side_are_those_of_the_command(name: str) -> None:
    def make() -> torch.nn.Module:
        return script.BLOCKS[name](16)

    plans = [dataclasses.replace(SMALL, seed=seed) for seed in range(2)]
    together = graphed.train(make, plans, script.mixers)
    for plan, (history, mixers, model) in zip(plans, together, strict=True):
        alone = train(make, plan)
        assert not beyond_rounding(history.losses, alone.losses).any()
        assert not beyond_rounding(history.gradients, alone.gradients).any()
        assert tuple(mixers.shape) == (24, 2)
        assert bool((mixers > 0).all())
        assert len(list(script.looked_at(model, plan))) == 2
    assert beyond_rounding(together[0][0].losses, together[1][0].losses).all()


@pytest.mark.parametrize("name", list(script.BLOCKS))
def test_a_step_waits_for_nothing_and_copies_nothing_that_a_graph_could_not_hold(name: str) -> None:
    """Tensors without numbers stand for a GPU's: whoever reads one on the host fails, and copies from there are seen."""
    trainer = Trainer(lambda: script.BLOCKS[name](16), dataclasses.replace(SMALL, device="meta"))
    tokens = torch.zeros(2, 16, dtype=torch.int64, device="meta")
    constants = graphed.Constants()

    def transfers(mode: str) -> list[str]:
        constants.begin(mode)
        with Transfers() as seen, constants:
            trainer.differentiate(tokens, tokens)
            script.mixers(trainer.model)
        return seen.found

    assert transfers("note")
    assert constants.kept
    assert not transfers("use")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(script.BLOCKS))
def test_a_captured_run_is_that_of_single_steps(name: str) -> None:
    def make() -> torch.nn.Module:
        return script.BLOCKS[name](16)

    plans = [dataclasses.replace(SMALL, seed=seed, device="cuda:0") for seed in range(2)]
    for plan, (history, _, _) in zip(plans, graphed.train(make, plans, script.mixers), strict=True):
        alone = train(make, plan)
        assert not beyond_rounding(history.losses, alone.losses).any()
        # cosFormer's normaliser comes near 0, where a rounding of a parameter moves a gradient by hundreds of roundings
        others = [nudged(make, plan, n).gradients for n in range(4)]
        moved = max(float(((x - alone.gradients) / alone.gradients).abs().max()) for x in others)
        assert not beyond_rounding(history.gradients, alone.gradients, moved).any()


def nudged(make: Callable[[], torch.nn.Module], plan: Training, seed: int) -> History:
    """The run with every parameter half a float32 rounding away, at random, at its start."""
    generator = torch.Generator(plan.device).manual_seed(seed)

    class Nudged(Trainer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for p in self.model.parameters():
                p.data *= 1 + EPS * (torch.rand(p.shape, device=p.device, generator=generator) - 0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("linverify.stability.layers.Trainer", Nudged)
        return train(make, plan)


def test_constants_that_change_from_step_to_step_are_refused() -> None:
    constants = graphed.Constants()
    with constants:
        first = torch.tensor([1.0], device="meta")
        constants.begin("use")
        assert torch.tensor([1.0], device="meta") is first
        with pytest.raises(ValueError, match="copies other numbers to the device"):
            torch.tensor([2.0], device="meta")


def test_what_is_told_of_the_claims_counts_seeds() -> None:
    def runs(*spreads: float) -> list:
        base = {"mismatch": 2.0, "spread": 0.1, "tail": 3.0, "last loss": 1.0}
        return [script.Run(base, s, [1.0, 1.2], [0.9, 0.9], [], 1.0) for s in spreads]

    found = {
        "1+elu": runs(0.5, 0.6),
        "Performer": runs(0.4, 0.8),
        "softmax (Pre-LN)": runs(0.3, 0.3),
        "NormAttention": runs(0.35, 0.2),
    }
    first, second = script.told(found)
    assert "1+elu > Performer in 1, Performer > softmax (Pre-LN) in 2, softmax (Pre-LN) > NormAttention in 1" in first
    assert "The order is not the claimed one" in first
    assert "1.10 ± 0.00 times their uniform share in the first two layers of softmax" in second


def test_the_table_of_modules_says_where_weights_come_from() -> None:
    modules = load("stability_modules")
    published = json.loads((BENCHMARKS.parent / "docs" / "published" / "stability-modules-cpu.json").read_text())
    rows = {row.split(" | ")[0].strip("| "): row for row in modules.table(published["runs"])}
    assert "| its own mix(scores, values) | 1e+06 | 1 |" in rows["Positive"]
    assert "| influence of mixer | - | - |" in rows["NormAttention"]
    page = (BENCHMARKS.parent / "docs" / "published" / "stability-modules-cpu.md").read_text()
    assert all(row in page for row in rows.values())
