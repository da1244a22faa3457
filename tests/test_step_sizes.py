"""Gradients of step sizes: a kernel that takes them from products (dS k) q loses more than one that keeps the scores."""

import dataclasses

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from linverify import draw, registry
from linverify.case import parse_case
from linverify.dtype import TF32, round_to
from linverify.judge import Judge
from linverify.problem import Problem
from linverify.reference.stated import evaluate

OPERATOR = registry.operator("ttt_linear")
PRODUCTS = "chunkwise, all in products"


class Truncating(torch.autograd.Function):
    """A product in float32 whose gradients are products of operands truncated to TF32."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.matmul(a, b)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's own
        g, a, b = (round_to(x, TF32) for x in (grads[0], a, b))
        return torch.matmul(g, b.mT), torch.matmul(a.mT, g)


class Products(TorchFunctionMode):
    """Every product is one of those."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        multiply = Truncating.apply if func in (Tensor.__matmul__, Tensor.matmul, torch.matmul) else func
        return multiply(*args, **(kwargs or {}))


def kernel(problem: Problem) -> dict[str, Tensor]:
    """O and all gradients."""
    leaves = {n: t.clone().requires_grad_() for n, t in problem.tensors.items()}
    with Products():
        o = evaluate(OPERATOR, PRODUCTS, leaves, problem)["o"]
    grads = torch.autograd.grad(o, [leaves[n] for n in problem.wrt], problem.cotangents["o"])
    return {"o": o.detach(), **{f"d{n}": g for n, g in zip(problem.wrt, grads, strict=True)}}


def test_what_products_truncate_is_right() -> None:
    """As flash-linear-attention's TTT in float32 (0.6.0; an H100, and the interpreter): deta at up to 2 shares, here 3.5."""
    problem = draw.problem(parse_case("ttt_linear/B1.T130.H1.K16.V16/fp32/cotangent=o/scale=one/seed=2"), OPERATOR)
    results, outcomes = kernel(problem), []
    for asked in (OPERATOR, dataclasses.replace(OPERATOR, ways={})):
        judge = Judge(asked, "cpu")
        answer = judge.answer(problem)
        outcomes.append({n for n, s in judge.scores(answer, results, "tf32") if s.outcome != "pass"})
        assert judge.score(answer, "deta", results["deta"] * 1.01, "tf32").outcome == "reject"
    assert outcomes == [set(), {"deta"}]
