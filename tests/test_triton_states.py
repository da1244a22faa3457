"""The Triton kernels keep the states of chunks in float32 where a gate's gradient needs them; a rounded one is seen."""

from dataclasses import replace

import pytest
import torch

from linverify import draw
from linverify.case import Case
from linverify.problem import Problem
from linverify.registry import operator
from tests.judged_kernels import DEVICES, NEEDS_TRITON, computed

pytestmark = NEEDS_TRITON
KERNELS = ("triton_chunkwise:simple_gla", "triton_chunkwise:gla", "triton_delta:gated_delta_rule", "triton_delta:kda")
TOKENS, U32 = 3, 2.0**-24


def silent(name: str, dtype: str) -> Problem:
    """A few tokens whose keys, values and queries are 0: gates alone work on the state."""
    case = Case(
        name, T=TOKENS, H=2, K=32, V=16, dtype=dtype, state="normal", final_state=True, cotangent="both", seed=3
    )  # type: ignore[arg-type]
    problem = draw.problem(case, operator(name))
    return replace(problem, tensors={n: torch.zeros_like(x) if n in "qkv" else x for n, x in problem.tensors.items()})


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_gate_loses_by_the_state_in_float32(kernel: str, dtype: str, device: str) -> None:
    name = kernel.partition(":")[2]
    problem = silent(name, dtype)
    results = computed(f"linverify.impls.{kernel}", problem, operator(name), device)
    (gate,) = (n for n in problem.tensors if n not in ("q", "k", "v", "beta"))
    g, state = problem.tensors[gate], problem.initial_state
    assert state is not None
    # Every gate's gradient is sum_v S_end dS_end, for no read or write comes between.
    heads = g.shape[2]
    left = g.double().sum(1).reshape(1, heads, -1, 1)
    terms = state.double() * left.exp() * problem.cotangents["state"].double()
    axes = 3 if left.shape[2] > 1 else (2, 3)
    expected, size = (x.sum(axes).reshape(1, 1, heads, -1) for x in (terms, terms.abs()))
    found = results[f"d{gate}"].double().reshape(1, TOKENS, heads, -1)
    # In float32: a product of two, the decay and a sum of its products, each within 2^-24; the sum of gates before the decay;
    # and the rounding to the gate's dtype.
    own = 0.0 if g.dtype == torch.float32 else torch.finfo(g.dtype).eps / 2
    products = terms[0, 0].numel() if left.shape[2] == 1 else terms.shape[3]
    allowed = (products + 4 + TOKENS * left.abs().reshape(1, 1, heads, -1)) * U32 * size + own * expected.abs()
    worst = ((found - expected).abs() / allowed).max().item()
    assert worst <= 1.0, worst
