"""Recurrent operators against code that nobody here wrote, in float64 where that code honours it, else in float32."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import solve
from tests.kinds import suited

SINGLE, DOUBLE = 2e-5, 1e-11


def ask(operator: Operator, T: int = 19, **changes: object) -> Problem:
    """A float64 problem with the gradients of o."""
    gate = "mild" if operator.gated else "none"
    case = Case(operator.name, 2, T, 2, 5, 4, dtype="fp64", gate=gate, cotangent="o", seed=T)
    return draw.problem(suited(case.with_(**changes), operator), operator)


def compare(
    operator: Operator, problem: Problem, function: Callable[..., Tensor], precision: float, *, gradients: bool = True
) -> None:
    """Hold the reference's o, and its gradients, to those of a function of the inputs."""
    leaves = {n: t.clone().requires_grad_(gradients) for n, t in problem.tensors.items()}
    o = function(**leaves)
    expected = solve(problem, operator)
    found = {"o": o.detach()}
    if gradients:
        grads = torch.autograd.grad(o, [leaves[n] for n in problem.wrt], problem.cotangents["o"].to(o.dtype))
        found.update({f"d{n}": g for n, g in zip(problem.wrt, grads, strict=True)})
    for n, t in found.items():
        size = float(expected[n].abs().max())
        assert size > 0
        assert float((t.double() - expected[n]).abs().max()) < precision * size, n


def first(x: Tensor) -> Tensor:
    """[B, T, H, D] to [B, H, T, D] and back."""
    return x.transpose(1, 2)


def single(**tensors: Tensor) -> dict[str, Tensor]:
    return {n: t.float() for n, t in tensors.items()}


# xLSTM


def mlstm(form: str, eps: float) -> Callable[..., Tensor]:
    kernels = pytest.importorskip("mlstm_kernels.torch")
    assert kernels
    from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd
    from mlstm_kernels.torch.parallel.native import mlstm_parallel__native_autograd
    from mlstm_kernels.torch.recurrent.native_sequence import mlstm_recurrent_sequence__native_fw

    named = {
        "parallel": mlstm_parallel__native_autograd,
        "chunkwise": mlstm_chunkwise__native_autograd,
        "recurrent": mlstm_recurrent_sequence__native_fw,
    }
    more: dict[str, Any] = {"chunk_size": 8} if form == "chunkwise" else {}
    more |= {"dtype_state": torch.float64} if form == "recurrent" else {}

    def function(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return first(named[form](*(first(x) for x in (q, k, v, i, f)), eps=eps, **more))

    return function


@pytest.mark.parametrize(("form", "precision"), [("parallel", DOUBLE), ("chunkwise", DOUBLE), ("recurrent", DOUBLE)])
def test_mlstm_is_that_of_the_authors(form: str, precision: float) -> None:
    operator = registry.operator("mlstm")
    # without gradients step by step: their loop writes its result in place
    compare(operator, ask(operator, 24), mlstm(form, 0.0), precision, gradients=form != "recurrent")


def test_the_eps_of_the_stabilised_mlstm_is_that_of_the_parallel_form() -> None:
    rebuild = registry.operator("mlstm").rebuild
    assert rebuild is not None
    operator = rebuild(eps=1e-3)
    compare(operator, ask(operator, 24), mlstm("parallel", 1e-3), DOUBLE, gradients=False)
    with pytest.raises(AssertionError):  # their recurrent form starts its maximum at 0
        compare(operator, ask(operator, 24), mlstm("recurrent", 1e-3), DOUBLE, gradients=False)


# Gated linear recurrences


def test_hgrn_is_that_of_fla() -> None:
    pytest.importorskip("fla")
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    operator = registry.operator("hgrn")
    compare(operator, ask(operator), lambda x, g: naive_recurrent_hgrn(x, g)[0], SINGLE, gradients=False)


def test_hgrn2_is_gla_with_the_complement_of_the_gate_for_key() -> None:
    pytest.importorskip("fla")
    from fla.ops.gla.naive import naive_recurrent_gla

    def function(q: Tensor, v: Tensor, g: Tensor) -> Tensor:
        scaled = q * q.shape[-1] ** 0.5  # their scale is K**-0.5
        return naive_recurrent_gla(scaled, 1 - g.exp(), v, g)[0]

    operator = registry.operator("hgrn2")
    compare(operator, ask(operator), function, SINGLE, gradients=False)


def test_rwkv4_is_a_softmax_over_time() -> None:
    def function(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T = k.shape[1]
        age = torch.arange(T)[:, None] - 1 - torch.arange(T)
        own = torch.eye(T, dtype=torch.bool)[..., None]
        scores = torch.where(own, (u + k)[:, None], k[:, None] - age[..., None] * w.exp())
        scores = scores.masked_fill((age < -1)[..., None], -torch.inf)
        return (torch.softmax(scores, 2) * v[:, None]).sum(2)

    operator = registry.operator("rwkv4")
    for T in (5, 40):
        compare(operator, ask(operator, T), function, DOUBLE)


@pytest.mark.parametrize("form", ["sequential", "scan"])
def test_mamba1_is_that_of_mambapy(form: str) -> None:
    mamba = pytest.importorskip("mambapy.mamba")
    operator = registry.operator("mamba1")
    problem = ask(operator, 16)
    width, states = problem.tensors["A"].shape

    def function(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        block = SimpleNamespace(config=SimpleNamespace(d_inner=width, d_state=states))
        run = mamba.MambaBlock.selective_scan_seq if form == "sequential" else mamba.MambaBlock.selective_scan
        return run(block, u, dt, A, B, C, torch.zeros(width, dtype=torch.float64))

    compare(operator, problem, function, DOUBLE)


# Delta rules


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_gated_delta_product_is_that_of_fla(steps: int) -> None:
    pytest.importorskip("fla")
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product

    rebuild = registry.operator("gated_delta_product").rebuild
    assert rebuild is not None
    operator = rebuild(num_householder=steps)

    def function(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        flat = (x.flatten(1, 2) for x in (k, v))
        return naive_recurrent_gated_delta_product(
            q, *flat, g, beta.flatten(1, 2), scale=q.shape[-1] ** -0.5, num_householder=steps
        )[0]

    compare(operator, ask(operator), function, SINGLE, gradients=False)


def test_iplr_and_dplr_are_those_of_fla() -> None:
    pytest.importorskip("fla")
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    pytest.importorskip("fla")
    from fla.ops.generalized_delta_rule.iplr.naive import iplr_chunkwise

    def iplr(**x: Tensor) -> Tensor:
        return first(iplr_chunkwise(*(first(x[n]) for n in "qkvab"), chunk_size=8)[0])

    def dplr(**x: Tensor) -> Tensor:
        return first(dplr_recurrence(*(first(y) for y in single(**{n: x[n] for n in "qkvabg"}).values()))[0])

    operator = registry.operator("iplr")
    compare(operator, ask(operator, 16), iplr, DOUBLE, gradients=False)
    operator = registry.operator("dplr")
    compare(operator, ask(operator, 16), dplr, SINGLE, gradients=False)


@pytest.mark.parametrize("T", [16, 21])
def test_ttt_linear_is_that_of_fla(T: int) -> None:
    pytest.importorskip("fla")
    from fla.ops.ttt.naive import chunk_ttt_linear_ref

    operator = registry.operator("ttt_linear")

    def function(**x: Tensor) -> Tensor:
        return chunk_ttt_linear_ref(*(x[n] for n in ("q", "k", "v", "w", "b", "eta")))[0]

    compare(operator, ask(operator, T), function, 1e-3, gradients=False)


# State spaces


def test_lru_is_that_of_lru_pytorch() -> None:
    LRU = pytest.importorskip("LRU_pytorch").LRU
    operator = registry.operator("lru")
    problem = ask(operator)
    x = single(**problem.tensors)
    unit = LRU(4, 4, 5)
    with torch.no_grad():
        for name in ("nu_log", "theta_log", "gamma_log"):
            getattr(unit, name).copy_(x[name])
        unit.B.copy_(torch.complex(x["B_re"], x["B_im"]))
        unit.C.copy_(torch.complex(x["C_re"], x["C_im"]))
        unit.D.zero_()
        found = unit(x["u"])
    compare(operator, problem, lambda **_: found, SINGLE, gradients=False)


def response(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, step: float, method: str, u: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Re(C x_t) of x' = A x + B u from a state x, discretised by SciPy, and the last state."""
    signal = pytest.importorskip("scipy.signal")
    a, b, *_ = signal.cont2discrete((A, B[:, None], C[None], np.zeros((1, 1))), step, method=method)
    out = []
    for value in u:
        x = a @ x + b[:, 0] * value
        out.append((C @ x).real)
    return np.asarray(out), x


def parts(x: Mapping[str, Tensor], name: str, real: str = "re", imaginary: str = "im") -> np.ndarray:
    return (x[f"{name}_{real}"] + 1j * x[f"{name}_{imaginary}"]).numpy()


def states(problem: Problem) -> np.ndarray:
    """The initial states as complex numbers."""
    assert problem.initial_state is not None
    return torch.view_as_complex(problem.initial_state).numpy()


def with_state(operator: Operator) -> Problem:
    return ask(operator, state="normal", final_state=True)


def same_state(problem: Problem, operator: Operator, last: np.ndarray) -> None:
    found = torch.view_as_complex(solve(problem, operator)["state"]).numpy()
    assert np.abs(found - last).max() < DOUBLE * np.abs(last).max()


def test_s4d_is_the_zero_order_hold_of_scipy() -> None:
    operator = registry.operator("s4d")
    problem = with_state(operator)
    first = states(problem)
    last = np.empty(first.shape, dtype=complex)
    x = problem.tensors
    A, C = (-x["log_A_real"].exp() + 1j * x["A_imag"]).numpy(), parts(x, "C")
    ones = np.ones(A.shape[1])
    found = np.empty(x["u"].shape)
    for b, d in np.ndindex(*found.shape[::2]):
        step = float(x["log_dt"][d].exp())
        out, last[b, d] = response(np.diag(A[d]), ones, C[d], step, "zoh", x["u"][b, :, d].numpy(), first[b, d])
        found[b, :, d] = 2 * out
    compare(operator, problem, lambda **_: torch.from_numpy(found), DOUBLE, gradients=False)
    same_state(problem, operator, last)


def test_s4_is_the_bilinear_rule_of_scipy() -> None:
    operator = registry.operator("s4")
    problem = with_state(operator)
    first = states(problem)
    last = np.empty(first.shape, dtype=complex)
    x = problem.tensors
    rate, P, B, C = (parts(x, n) for n in ("Lambda", "P", "B", "C"))
    found = np.empty(x["u"].shape)
    for b, d in np.ndindex(*found.shape[::2]):
        A = np.diag(rate[d]) - np.outer(P[d], P[d].conj())
        step = float(x["log_dt"][d].exp())
        u = x["u"][b, :, d].numpy()
        found[b, :, d], last[b, d] = response(A, B[d], C[d], step, "bilinear", u, first[b, d])
    compare(operator, problem, lambda **_: torch.from_numpy(found), DOUBLE, gradients=False)
    same_state(problem, operator, last)


@pytest.mark.parametrize(
    ("rule", "method"), [("bilinear", "bilinear"), ("backward", "backward_diff"), ("forward", "euler")]
)
def test_hippo_legs_is_a_rule_of_scipy_at_every_step(rule: str, method: str) -> None:
    signal = pytest.importorskip("scipy.signal")
    rebuild = registry.operator("hippo_legs").rebuild
    assert rebuild is not None
    operator = rebuild(N=6, rule=rule)
    problem = ask(operator)
    n = np.arange(6)
    root = np.sqrt(2 * n + 1)
    A = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    f = problem.tensors["f"].numpy()
    c, found = np.zeros((*f.shape[::2], 6)), []
    for t in range(f.shape[1]):
        system = (A / (t + 1), root[:, None] / (t + 1), np.eye(6), np.zeros((6, 1)))
        a, b, *_ = signal.cont2discrete(system, 1.0, method=method)
        c = c @ a.T + f[:, t, :, None] * b[:, 0]
        found.append(c)
    compare(operator, problem, lambda **_: torch.from_numpy(np.stack(found, 1)), 1e-9, gradients=False)


def test_hippo_legs_remembers_a_constant() -> None:
    operator = registry.operator("hippo_legs")
    problem = ask(operator, 40)
    o = solve(problem.with_(tensors={"f": torch.ones_like(problem.tensors["f"])}, cotangents={}, wrt=()), operator)["o"]
    left = torch.tensor(
        [1 - 1 / (2 * t + 1) for t in range(1, 41)], dtype=torch.float64
    )  # the product of (2s-1) / (2s+1)
    torch.testing.assert_close(o[..., 0], left[None, :, None].expand(o.shape[:3]))
    assert float(o[:, -1, :, 1:].abs().max()) < 0.05
