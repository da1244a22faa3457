"""16-bit gates that feed several terms: each part of their gradient is rounded, in kernels and in the budget alike."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.parts import added, narrow_gates, parts_of
from linverify.problem import Problem
from linverify.reference.question import pose
from tests.kinds import suited

# Each takes a gate that is widened as often as it is used, or once.
Kernel = Callable[..., Tensor]


def scan(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """sum_d q_td S_t[d], S_t = decay_t S_(t-1) + k_t v_t: everything [B, T, H, .], float32."""
    S, outs = q.new_zeros(*k[:, 0].shape, v.shape[-1]), []
    for t in range(q.shape[1]):
        S = decay[:, t, ..., None] * S + k[:, t, ..., None] * v[:, t, :, None]
        outs.append((q[:, t, ..., None] * S).sum(-2))
    return torch.stack(outs, 1)


def hgrn2(widen: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Kernel:
    def kernel(q: Tensor, v: Tensor, g: Tensor) -> Tensor:
        first, second = widen(g)
        return scan(q.float(), -first.expm1(), v.float(), second.exp())

    return kernel


def mamba1(widen: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Kernel:
    def kernel(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        first, second = widen(dt)
        q, k = (x.float()[:, :, None].expand(*u.shape, -1) for x in (C, B))
        return scan(q, k, (first * u.float())[..., None], (second[..., None] * A.float()).exp())[..., 0]

    return kernel


def once(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.float()
    return wide, wide


def for_every_use(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.float(), x.float()


def one_part_lost(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.float().detach(), x.float()


KERNELS = {"hgrn2": (hgrn2, "g"), "mamba1": (mamba1, "dt")}


def ask(name: str, mixture: str, seed: int) -> tuple[Problem, Operator]:
    operator = registry.operator(name)
    case = Case(name, 2, 19, 2, 8, 6, dtype="bf16", gate="mild", mixture=mixture, cotangent="o", scale="one", seed=seed)
    return draw.problem(suited(case, operator), operator), operator


def outcomes(
    name: str, widen: Callable[[Tensor], tuple[Tensor, Tensor]], mixture: str, *, rounded: bool = False
) -> set[str]:
    """Outcomes of the gate's gradient on a few problems."""
    make, gate = KERNELS[name]
    found = set()
    for seed in range(3):
        p, operator = ask(name, mixture, seed)
        leaves = {n: t.clone().requires_grad_() for n, t in p.tensors.items()}
        (gradient,) = torch.autograd.grad(make(widen)(**leaves), [leaves[gate]], p.cotangents["o"].float())
        gradient = gradient.bfloat16().to(gradient.dtype) if rounded else gradient
        judge = Judge(operator, "cpu")
        found.add(judge.score(judge.answer(p), f"d{gate}", gradient, "bf16").outcome)
    return found


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("widen", [once, for_every_use])
def test_a_gate_may_be_widened_for_every_use(name: str, widen: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    assert outcomes(name, widen, "gates") == {"pass"}


@pytest.mark.parametrize("name", KERNELS)
def test_a_part_that_is_lost_is_seen(name: str) -> None:
    assert outcomes(name, one_part_lost, "gates") == {"reject"}


@pytest.mark.parametrize("name", KERNELS)
def test_gates_in_float32_have_no_parts_to_round(name: str) -> None:
    p, operator = ask(name, "usual", 0)
    assert narrow_gates(pose(p, operator, "cpu")) == ()
    assert narrow_gates(pose(ask(name, "gates", 0)[0], operator, "cpu")) == (
        KERNELS[name][1],
        *["A"] * (name == "mamba1"),
    )


def test_parts_are_rounded_and_added() -> None:
    leaf = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ones = {n: torch.ones(5, dtype=torch.float64) for n in "qkv"}
    parts = parts_of(leaf, {"k": 2 * leaf, "v": leaf.square(), "q": ones["q"].clone().requires_grad_()}, ones)
    assert len(parts) == 2
    nearest = added(parts, torch.bfloat16, None)
    assert torch.equal(nearest, 2 + (2 * leaf.detach()).bfloat16().double())
    assert torch.equal(added(parts[1:], torch.bfloat16, None), parts[1])
    drawn = torch.stack([added(parts, torch.bfloat16, torch.Generator().manual_seed(s)) for s in range(2000)])
    size = (4 + 4 * leaf.detach().square()).sqrt() * 2.0**-8 * 0.4247
    torch.testing.assert_close((drawn - sum(parts)).square().mean(0).sqrt(), size, rtol=0.08, atol=0)
