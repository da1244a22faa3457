"""The Triton kernels keep the states of chunks in float32 where a gate's gradient needs them; a rounded one is seen."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from linverify import draw
from linverify.binding import bind
from linverify.case import Case
from linverify.problem import Call, Problem, Program
from linverify.registry import operator
from linverify.runner import Runner
from linverify.target import parse

pytest.importorskip("triton")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
KERNELS = [("triton_chunkwise", ("simple_gla", "gla")), ("triton_delta", ("gated_delta_rule", "kda"))]
TOKENS, U32 = 3, 2.0**-24


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=on_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=KERNELS, ids=[m for m, _ in KERNELS])
def kernels(request: pytest.FixtureRequest, device: str) -> Iterator[tuple[Runner, tuple[str, ...]]]:
    runner = Runner(parse(f"linverify.impls.{request.param[0]}"), device=device)
    yield runner, request.param[1]
    runner.close()


def silent(name: str, dtype: str) -> Problem:
    """A few tokens whose keys, values and queries are 0: gates alone work on the state."""
    case = Case(
        name, T=TOKENS, H=2, K=32, V=16, dtype=dtype, state="normal", final_state=True, cotangent="both", seed=3
    )  # type: ignore[arg-type]
    problem = draw.problem(case, operator(name))
    return replace(problem, tensors={n: torch.zeros_like(x) if n in "qkv" else x for n, x in problem.tensors.items()})


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("which", [0, 1], ids=["a gate for all channels", "a gate a channel"])
def test_a_gate_loses_by_the_state_in_float32(kernels: tuple[Runner, tuple[str, ...]], which: int, dtype: str) -> None:
    runner, names = kernels
    op, problem = operator(names[which]), silent(names[which], dtype)
    runner.bind(bind(op, next(f for f in runner.describe().functions if f.name == op.name)), op)
    (result,) = runner.run(Program((Call(problem),)), time_limit=300.0)
    (gate,) = (n for n in problem.tensors if n not in ("q", "k", "v", "beta"))
    g, state = problem.tensors[gate], problem.initial_state
    assert state is not None
    # Every gate's gradient is sum_v S_end dS_end, for no read or write comes between.
    heads = g.shape[2]
    left = g.double().sum(1).reshape(1, heads, -1, 1)
    terms = state.double() * left.exp() * problem.cotangents["state"].double()
    axes = 3 if left.shape[2] > 1 else (2, 3)
    expected, size = (x.sum(axes).reshape(1, 1, heads, -1) for x in (terms, terms.abs()))
    found = result.named()[f"d{gate}"].double().reshape(1, TOKENS, heads, -1)
    # In float32: a product of two, the decay and a sum of its products, each within 2^-24; the sum of gates before the decay;
    # and the rounding to the gate's dtype.
    own = 0.0 if g.dtype == torch.float32 else torch.finfo(g.dtype).eps / 2
    products = terms[0, 0].numel() if left.shape[2] == 1 else terms.shape[3]
    allowed = (products + 4 + TOKENS * left.abs().reshape(1, 1, heads, -1)) * U32 * size + own * expected.abs()
    worst = ((found - expected).abs() / allowed).max().item()
    assert worst <= 1.0, worst
