"""The generic forms: every form of every operator against the stepwise float64 reference, which shares no line with them."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from linverify import draw
from linverify.case import Case
from linverify.dtype import FP32, FP64
from linverify.implementation import declared
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import stepwise
from linverify.reference.question import sizes_of
from linverify.regime import gate_regimes
from linverify.registry import implementations, operator, operators
from tests.kinds import PLAIN

FORMS: dict[str, ModuleType] = {
    form: importlib.import_module(f"linverify.impls.torch_{form}") for form in ("naive", "recurrent", "chunkwise")
}
# Around the sub-chunk of 16 and the chunk of 64.
LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 130)
GATED_CASES = [
    (name, gate)
    for name, op in ((n, operator(n)) for n in PLAIN)
    for gate in ("none", "mild", "strong", "reset")
    if gate in gate_regimes(op)
]


def run(function: Callable[..., tuple[Tensor, Tensor | None]], problem: Problem) -> dict[str, Tensor]:
    """Call a form and name its results as a reference does."""
    tensors = {n: t.clone().requires_grad_(n in problem.wrt) for n, t in problem.tensors.items()}
    given = dict(tensors)
    if problem.initial_state is not None:
        given["initial_state"] = problem.initial_state.clone().requires_grad_("initial_state" in problem.wrt)
    ends = torch.tensor([0, *problem.lengths]).cumsum(0) if problem.lengths else None
    o, state = function(**given, scale=problem.scale, output_final_state=problem.final_state, cu_seqlens=ends)
    results = {"o": o.detach()}
    if problem.final_state:
        assert state is not None
        results["state"] = state.detach()
    if problem.cotangents:
        outputs = {"o": o, "state": state}
        grads = torch.autograd.grad(
            [outputs[n] for n in problem.cotangents], [given[n] for n in problem.wrt], list(problem.cotangents.values())
        )
        results.update({f"d{n}": g for n, g in zip(problem.wrt, grads, strict=True)})
    return results


def bounds(problem: Problem, op: Operator, expected: Mapping[str, Tensor]) -> dict[str, float]:
    """How far two correct computations may differ, in the largest element of each result.

    An element goes through up to T steps and sums over K and V: T + K + V roundings. A decay is exp of a sum of gates whose
    rounding error is relative to the sum, which multiplies the count. The gradient of a gate is a sum of reads minus writes
    that may cancel, so its error is relative to the sum of their sizes.
    """
    sizes = sizes_of(problem, op)
    log_decay = op.canonical({n: t.double() for n, t in problem.tensors.items()}, sizes).log_decay
    gates = 0.0 if log_decay is None else sizes["T"] * float(log_decay.abs().max())
    roundings = (sizes["T"] + sizes["K"] + sizes["V"]) * (1.0 + gates)
    gate_inputs = {i.name for i in op.of_kind("log_gate", "step_size", "log_rate")}
    others = [n for n in problem.wrt if n not in gate_inputs]
    given = {**problem.tensors, "initial_state": problem.initial_state}
    mass = sum(float((given[n].double() * expected[f"d{n}"]).abs().sum()) for n in others)
    if "state" in problem.cotangents:
        mass += float((expected["state"] * problem.cotangents["state"].double()).abs().sum())
    # dlog_decay / dinput where the gate is a product of a rate and a step size.
    inner = max([1.0, *(float(problem.tensors[n].abs().sum()) for n in gate_inputs if op.input(n).kind != "log_gate")])
    sizes_of_results = {n: mass * inner if n[1:] in gate_inputs else float(x.abs().max()) for n, x in expected.items()}
    return {
        n: roundings * (FP64.unit_roundoff * size + FP64.smallest_subnormal) for n, size in sizes_of_results.items()
    }


def disagreements(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], allowed: Mapping[str, float]) -> list[str]:
    """Names of the results that differ by more than is allowed, or in shape."""
    assert got.keys() == expected.keys()
    return [
        f"{n}: {float((got[n] - x).abs().max())} > {allowed[n]}"
        for n, x in expected.items()
        if got[n].shape != x.shape or not float((got[n] - x).abs().max()) <= allowed[n]
    ]


def problems(op: Operator, gate: str, T: int) -> list[Problem]:
    """A dense batch and packed sequences, the empty one and the one of length 1 included."""
    dense = Case(
        op.name,
        B=2,
        T=T,
        H=2,
        K=7,
        V=5,
        dtype="fp64",
        gate=gate,
        state="normal",
        final_state=True,
        cotangent="both",
        seed=T,
    )
    packed = dense.with_(B=1, lengths=(T // 2, 0, 1, T - T // 2 - 1), scale="other")
    return [draw.problem(c, op) for c in ([dense, packed] if T > 1 else [dense])]


@pytest.mark.parametrize(("name", "gate"), GATED_CASES)
def test_every_form_agrees_with_the_stepwise_reference(name: str, gate: str) -> None:
    op = operator(name)
    for T in LENGTHS:
        for problem in problems(op, gate, T):
            expected = stepwise(problem, op)
            allowed = bounds(problem, op, expected)
            for form, module in FORMS.items():
                wrong = disagreements(run(getattr(module, name), problem), expected, allowed)
                assert not wrong, f"{form} {name}, T={T}, lengths {problem.lengths}: {wrong}"


@pytest.mark.parametrize("gate", ["mild", "reset"])
def test_a_gate_that_is_off_by_one_token_is_seen(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, module = operator("gla"), FORMS["chunkwise"]
    right = module.sums
    monkeypatch.setattr(module, "sums", lambda t: replace(right(t), end=right(t).before[..., -1:, :]))
    problem = problems(op, gate, 64)[0]
    expected = stepwise(problem, op)
    wrong = disagreements(run(module.gla, problem), expected, bounds(problem, op, expected))
    assert any(text.startswith("state:") for text in wrong), wrong


def test_running_sums_need_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the naive form must not lose digits to a sum of gates far larger than any difference that matters."""
    op, module = operator("simple_gla"), FORMS["naive"]
    T, width = 300, 7
    drawn = [draw.problem(Case(op.name, T=T, H=2, K=width, V=5, gate=gate, seed=1), op) for gate in ("reset", "mild")]
    problem = drawn[0].with_tensors(g=drawn[0].tensors["g"] + drawn[1].tensors["g"])
    expected = stepwise(problem, op)["o"]

    def error() -> float:
        return float((run(module.simple_gla, problem)["o"] - expected).abs().max() / expected.abs().max())

    # Resets leave few tokens in reach, so the sums over the width are what rounds.
    allowed = 2 * (width + 1) * FP32.unit_roundoff
    assert error() <= allowed
    right = module.sums
    monkeypatch.setattr(module, "sums", lambda t: right(replace(t, log_decay=t.log_decay.float())))
    assert error() > allowed


@pytest.mark.parametrize("name", [n for n in PLAIN if any("K" in i.axes for i in operator(n).of_kind("log_gate"))])
def test_long_channel_gates_come_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores made one row at a time, and again in the backward pass, are those made at once."""
    op, module = operator(name), FORMS["naive"]
    problem = problems(op, "mild", 17)[0]
    whole = run(getattr(module, name), problem)
    monkeypatch.setattr(module, "_BLOCK", 1)
    assert not disagreements(run(getattr(module, name), problem), whole, bounds(problem, op, whole))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", PLAIN)
def test_results_have_the_promised_dtypes(name: str, dtype: str) -> None:
    op = operator(name)
    problem = draw.problem(
        Case(name, B=1, T=5, H=2, K=4, V=3, dtype=dtype, state="normal", final_state=True, cotangent="both"), op
    )
    for module in FORMS.values():
        got = run(getattr(module, name), problem)
        assert got["o"].dtype == problem.tensors[op.value_name].dtype
        assert got["state"].dtype == torch.float32
        assert all(got[f"d{n}"].dtype == problem.tensors[n].dtype for n in problem.tensors)


def test_without_a_request_there_is_no_state() -> None:
    problem = draw.problem(Case("gla", T=5, K=4, V=3), operator("gla"))
    for module in FORMS.values():
        _, state = module.gla(**problem.tensors)
        assert state is None


def test_empty_sequences_only() -> None:
    inputs = {n: torch.zeros(1, 0, 2, 3, requires_grad=True) for n in ("q", "k", "g")} | {"v": torch.zeros(1, 0, 2, 4)}
    state = torch.randn(2, 2, 3, 4)
    for module in FORMS.values():
        o, final = module.gla(
            **inputs, initial_state=state, output_final_state=True, cu_seqlens=torch.tensor([0, 0, 0])
        )
        assert o.shape == (1, 0, 2, 4)
        assert torch.equal(final, state)


def test_every_operator_has_every_form() -> None:
    assert {(i.operator, i.form) for i in implementations() if i.backend == "torch"} == {
        (o.name, f) for o in operators().values() for f in o.form_names
    }


@pytest.mark.parametrize("form", FORMS)
def test_functions_look_like_kernels(form: str) -> None:
    for name, op in operators().items():
        if form not in op.form_names:
            continue
        function = getattr(FORMS[form], name)
        names = list(inspect.signature(function).parameters)
        state = ["initial_state", "output_final_state"] if op.state_axes else []
        packed = ["cu_seqlens"] if "M19" in op.identities else []
        assert names == [*(i.name for i in op.inputs), "scale", *state, *packed, *op.parameters]
        assert (function.__module__, function.__name__) == (f"linverify.impls.torch_{form}", name)
        assert [(c.operator, c.form, c.backend) for c in declared(function)] == [(name, form, "torch")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 5, 2, 9)}, r"gla: expected k of shape \[B=1, T=5, H=2, K=4\], got \[1, 5, 2, 9\]"),
        ({"initial_state": torch.zeros(1, 2, 3, 4)}, r"initial_state of shape \[N, H, K, V\] = \[1, 2, 4, 3\]"),
        ({"cu_seqlens": torch.tensor([0, 4])}, r"cu_seqlens to rise from 0 to T=5 with B=1, got \[0, 4\]"),
    ],
)
def test_wrong_shapes_are_explained(change: dict[str, Tensor], message: str) -> None:
    problem = draw.problem(Case("gla", T=5, H=2, K=4, V=3), operator("gla"))
    with pytest.raises(ValueError, match=message):
        FORMS["recurrent"].gla(**{**problem.tensors, **change})
