"""States through blocks of chunks, as a GPU takes them: those of the loop over chunks and of the stepwise recurrence."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linverify import registry
from linverify.case import Case
from linverify.draw import problem
from linverify.reference import blocks, pairs
from linverify.reference.chunkwise import solved
from linverify.reference.question import pose
from linverify.reference.stepwise import stepwise

# No decay, one of either kind, read before and after the write, low-rank terms of every kind.
OPERATORS = ("linear_attention", "simple_gla", "gla", "rwkv6", "delta_rule", "gated_delta_rule", "kda", "rwkv7")


def through_blocks(
    name: str, gate: str, tokens: int = 530, *, loop: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results by blocks, and step by step; in chunks of two, so that blocks of blocks are needed."""
    operator = registry.operator(name)
    case = Case(
        name, 1, tokens, 2, 5, 4, dtype="fp32", gate=gate, state="normal", final_state=True, cotangent="both", seed=2
    )
    posed = problem(case, operator)
    question = pose(posed, operator, "cpu")
    o, state, _ = solved(question.rows, question.scale, 2, loop=loop)
    leaves = {n: x for n, x in question.leaves.items() if x.requires_grad}
    assert question.do is not None
    assert question.dstate is not None
    grads = torch.autograd.grad([o, state], list(leaves.values()), [question.do, question.dstate])
    found = {"o": question.read(o), "state": question.unstates(state)}
    return found | {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}, stepwise(posed, operator)


def apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest difference, in units of a result's largest element."""
    assert found.keys() == exact.keys()
    return max(float(((found[n] - x).abs().max() / x.abs().max()).detach()) for n, x in exact.items())


@pytest.mark.parametrize("gate", ["mild", "strong", "reset"])
@pytest.mark.parametrize("name", OPERATORS)
def test_blocks_are_the_recurrence(name: str, gate: str) -> None:
    gate = gate if registry.operator(name).gated else "none"
    assert apart(*through_blocks(name, gate)) < 1e-13


@pytest.mark.parametrize("tokens", [1, 2, 32, 33, 512, 513])
@pytest.mark.parametrize("name", ["kda", "gla"])
def test_at_the_edges_of_blocks(name: str, tokens: int) -> None:
    assert apart(*through_blocks(name, "mild", tokens)) < 1e-13


def test_what_has_no_room_goes_from_chunk_to_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LARGEST", 0)
    monkeypatch.setattr(blocks, "_written", None)  # nobody asks for it
    assert apart(*through_blocks("gla", "mild")) < 1e-13


def without(name: str) -> Callable[..., Tensor]:
    """The right one's result, but for a part in a million of it."""
    right = getattr(blocks, name)
    return lambda *given: right(*given) * (1 + 1e-6)


@pytest.mark.parametrize(("fault", "name"), [("_shifted", "gla"), ("_written", "simple_gla"), ("_cut", "kda")])
def test_a_fault_in_a_block_is_seen(fault: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, fault, without(fault))
    assert apart(*through_blocks(name, "mild")) > 1e-9


def test_a_fault_in_the_gradients_of_pairs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pairs._Pairs.backward

    def wrong(ctx: object, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy, reader, writer, _ = right(ctx, *grads)
        return dx, dy, reader, writer * (1 + 1e-6), None

    monkeypatch.setattr(pairs._Pairs, "backward", staticmethod(wrong))
    assert apart(*through_blocks("gla", "mild")) > 1e-9


def test_gradients_of_pairs_are_their_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    gates = -torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=generator)
    until = gates.cumsum(2).requires_grad_()
    before = (until - gates).detach().requires_grad_()
    mask = torch.ones(3, 3, dtype=torch.bool).tril(-1)
    assert torch.autograd.gradcheck(lambda *t: pairs.pairs(*t, mask), (x, y, before, until))
