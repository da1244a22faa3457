"""The chunkwise reference as a GPU takes it: results of the stepwise recurrence, and each written adjoint a derivative."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from linverify import registry
from linverify.case import Case
from linverify.draw import problem
from linverify.reference import blocks, halves, inverse
from linverify.reference.chunkwise import solved
from linverify.reference.question import pose
from linverify.reference.stepwise import stepwise

# No decay, one of either kind, read before and after the write, low-rank terms of every kind.
OPERATORS = ("linear_attention", "simple_gla", "gla", "rwkv6", "delta_rule", "gated_delta_rule", "kda", "rwkv7")


def through_blocks(
    name: str, gate: str, tokens: int = 530, *, loop: bool = False, chunk: int = 2
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results by blocks, and step by step; in chunks of two by default, so that blocks of blocks are needed."""
    operator = registry.operator(name)
    case = Case(
        name, 1, tokens, 2, 5, 4, dtype="fp32", gate=gate, state="normal", final_state=True, cotangent="both", seed=2
    )
    posed = problem(case, operator)
    question = pose(posed, operator, "cpu")
    o, state, _ = solved(question.rows, question.scale, chunk, loop=loop)
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


@pytest.mark.parametrize("chunk", [2, 64])
@pytest.mark.parametrize("gate", ["mild", "strong", "reset"])
@pytest.mark.parametrize("name", OPERATORS)
def test_blocks_are_the_recurrence(name: str, gate: str, chunk: int) -> None:
    gate = gate if registry.operator(name).gated else "none"
    assert apart(*through_blocks(name, gate, chunk=chunk)) < 1e-13


@pytest.mark.parametrize("tokens", [1, 2, 3, 32, 33, 34, 67, 579])
@pytest.mark.parametrize("name", ["kda", "gla"])
def test_at_the_edges_of_blocks(name: str, tokens: int) -> None:
    assert apart(*through_blocks(name, "mild", tokens)) < 1e-13


@pytest.mark.parametrize("name", ["kda", "simple_gla"])
def test_what_has_no_room_goes_from_chunk_to_chunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_LARGEST", 0)
    monkeypatch.setattr(blocks, "_composed", None)  # nobody asks for it
    assert apart(*through_blocks(name, "mild")) < 1e-13


def without(right: Callable[..., Any]) -> Callable[..., Any]:
    """The right one's results, but for a part in a million of them."""

    def wrong(*given: Any, **options: Any) -> Any:
        found = right(*given, **options)
        return (
            tuple(x * (1 + 1e-6) if isinstance(x, Tensor) else x for x in found)
            if isinstance(found, tuple)
            else found * (1 + 1e-6)
        )

    return wrong


@pytest.mark.parametrize(
    ("module", "fault", "name"),
    [
        (blocks, "_composed", "gla"),
        (blocks, "_composed", "kda"),
        (blocks, "_cut", "simple_gla"),
        (blocks, "_walked", "simple_gla"),
        (blocks, "_through", "kda"),
        (blocks, "_matrices", "gated_delta_rule"),
        (inverse, "_inverse", "rwkv7"),
        (halves, "_spans", "gla"),
        (halves, "_decays", "kda"),
    ],
)
def test_a_fault_in_a_part_is_seen(module: ModuleType, fault: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, fault, without(getattr(module, fault)))
    assert apart(*through_blocks(name, "mild", chunk=4)) > 1e-9


@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (halves._Met, 1),
        (halves._Met, 2),
        (halves._Met, 3),
        (inverse._Inverse, 0),
        *((blocks._Entering, n) for n in range(5)),
    ],
)
def test_a_fault_in_a_gradient_is_seen(function: Any, gradient: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = function.backward

    def wrong(ctx: Any, *grads: Tensor) -> Any:
        found = right(ctx, *grads)
        several = found if isinstance(found, tuple) else (found,)
        off = tuple(g * (1 + 1e-6) if n == gradient else g for n, g in enumerate(several))
        return off if isinstance(found, tuple) else off[0]

    monkeypatch.setattr(function, "backward", staticmethod(wrong))
    assert apart(*through_blocks("kda", "mild", chunk=8)) > 1e-9


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize(
    "readers",
    [
        (halves.Reader(before=False, own=True),),
        (halves.Reader(before=True, own=False),),
        (halves.Reader(before=False, own=True), halves.Reader(before=True, own=False)),
    ],
)
def test_what_meets_in_a_chunk(readers: halves.Readers) -> None:
    """Scores are those of all pairs, each with its decays; and gradients their derivatives."""
    M, C, K, w = 2, 8, 3, 2
    gates = (-random(M, C, K, seed=0).detach().abs()).requires_grad_()
    x, y = random(M, C, len(readers), K, seed=1), random(M, C, w, K, seed=2)
    reads, writes, whole, scores = halves.meet(readers, gates, x, y)
    token = torch.arange(C)
    between = gates[:, :, None].where((token[:, None] > token)[..., None], 0.0).cumsum(1)  # summed from j + 1 to i
    until = gates.cumsum(1)

    def close(found: Tensor, exact: Tensor, sizes: Tensor) -> bool:
        return bool(((found - exact).abs() <= sizes).all())

    def may_lose(log_decay: Tensor, terms: int) -> Tensor:
        """Of a sum of so many products with a decay: roundings of its C - 1 sums, its exp, the products and the sum; of both."""
        return 2 * 2.0**-53 * ((C - 1) * log_decay.abs() + 2 + 2 + terms - 1) * log_decay.exp()

    for n, reader in enumerate(readers):
        at, gap = (torch.cat([t[:, :1] * 0, t[:, :-1]], 1) if reader.before else t for t in (until, between))
        mask = torch.ones(C, C, dtype=torch.bool).tril(0 if reader.own else -1)
        pairs, lost = (
            torch.einsum("mik,mjwk,mijk->wmij", a, b, decay.where(mask[..., None], 0.0))
            for a, b, decay in ((x[:, :, n], y, gap.exp()), (x[:, :, n].abs(), y.abs(), may_lose(gap, K)))
        )
        assert close(scores[n], pairs, lost)
        assert close(reads[:, :, n], x[:, :, n] * at.exp(), x[:, :, n].abs() * may_lose(at, 1))
    assert close(writes, y * between[:, -1, :, None].exp(), y.abs() * may_lose(between[:, -1, :, None], 1))
    assert close(whole, until[:, -1].exp(), may_lose(until[:, -1], 1))
    assert torch.autograd.gradcheck(lambda *t: halves.meet(readers, *t), (gates, x, y))


@pytest.mark.parametrize(("n", "wide"), [(3, 1), (3, 4), (19, 1), (19, 4)])
def test_gradients_of_states_are_their_derivatives(n: int, wide: int) -> None:
    K, V, C = 4, 3, 2
    kept, added, state = random(2, n, wide, 1, seed=0), random(2, n, K, V, seed=1), random(2, K, V, seed=2)
    writers, readers = random(2, n, K, C, seed=3), random(2, n, C, K, seed=4)
    assert torch.autograd.gradcheck(lambda a, b, s: blocks.entering(a.sigmoid(), b, s), (kept, added, state))
    assert torch.autograd.gradcheck(
        lambda a, b, s, w, r: blocks.entering(a.sigmoid(), b, s, w / 4, r), (kept, added, state, writers, readers)
    )


@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 64])
def test_an_inverse_is_one(chunk: int) -> None:
    """Of equal keys written twice over, where a series has terms of many digits; and its gradient is the derivative."""
    lower = -2.0 * torch.ones(3, chunk, chunk, dtype=torch.float64).tril(-1)
    eye = torch.eye(chunk, dtype=torch.float64)
    exact = torch.linalg.solve_triangular(eye - lower, eye.expand_as(lower), upper=False, unitriangular=True)
    assert float((inverse.inverse(lower) - exact).abs().max()) <= 1e-13
    if 1 < chunk <= 8:
        given = random(2, chunk, chunk, seed=chunk)
        assert torch.autograd.gradcheck(lambda a: inverse.inverse(a.tril(-1)), given)
