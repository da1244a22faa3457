"""Operators with maps of their inputs and outputs, against code that is not ours, and against formulas in another shape."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm, scaled_dot_product_attention

from linverify import draw, registry
from linverify.binding import bind
from linverify.case import Case
from linverify.operator import Operator
from linverify.parameters import with_parameters
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.reference import highprecision, solve, stated
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import PropertyResult, Status
from tests.test_operators import describe

PLANTED = Path(__file__).parent / "planted" / "maps.py"


def ask(
    operator: Operator, *, T: int = 37, scale: str = "default", dtype: str = "fp64"
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of an operator and its float64 reference."""
    problem = draw.problem(Case(operator.name, 2, T, 3, 8, 5, dtype=dtype, scale=scale, seed=T), operator)
    return dict(problem.tensors), solve(problem, operator)["o"]


def heads_first(*tensors: Tensor) -> list[Tensor]:
    return [t.transpose(1, 2) for t in tensors]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# Against flash-linear-attention


@pytest.mark.parametrize("use_norm", [True, False])
def test_based_is_that_of_flash_linear_attention(use_norm: bool) -> None:
    naive = pytest.importorskip("fla.ops.based.naive")
    x, o = ask(with_parameters(registry.operator("based"), {"use_norm": str(use_norm)}), T=48)
    q, k, v = heads_first(x["q"], x["k"], x["v"])
    close(naive.naive_parallel_based(q, k, v, use_norm=use_norm).transpose(1, 2), o)
    if use_norm:
        close(naive.naive_chunk_based(q, k, v, chunk_size=12).transpose(1, 2), o)


@pytest.mark.parametrize("use_norm", [True, False])
def test_rebased_is_that_of_flash_linear_attention(use_norm: bool) -> None:
    naive = pytest.importorskip("fla.ops.rebased.naive")
    x, o = ask(with_parameters(registry.operator("rebased"), {"use_norm": str(use_norm)}))
    found = naive.naive_parallel_rebased(*heads_first(x["q"], x["k"], x["v"]), use_norm=use_norm)
    close(found.transpose(1, 2), o)


def test_the_causal_product_is_unnormalised_linear_attention() -> None:
    naive = pytest.importorskip("fla.ops.linear_attn.naive")
    x, o = ask(registry.operator("causal_product"), T=128)
    close(naive.naive_chunk_linear_attn(*heads_first(x["Q"], x["K"], x["V"]), scale=1.0).transpose(1, 2), o)


def test_the_causal_product_is_that_of_fast_transformers() -> None:
    module = pytest.importorskip("fast_transformers.causal_product")
    operator = registry.operator("causal_product")
    problem = draw.problem(Case(operator.name, 2, 37, 3, 8, 5, cotangent="o", seed=1), operator)
    leaves = {n: t.clone().requires_grad_() for n, t in problem.tensors.items()}
    o = module.causal_dot_product(*leaves.values())
    o.backward(problem.cotangents["o"])
    expected = solve(problem, operator)
    for name, found in {"o": o, **{f"d{n}": t.grad for n, t in leaves.items()}}.items():
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 5, 11])
def test_lightning_attention_has_the_decay_of_flash_linear_attention(
    layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fla")
    library = importlib.import_module("fla.ops.lightning_attn.chunk")
    naive = importlib.import_module("fla.ops.simple_gla.naive").naive_recurrent_simple_gla

    def run(q: Tensor, k: Tensor, v: Tensor, g_gamma: Tensor, scale: float | None, **_: object) -> Tensor:
        found: Tensor = naive(q, k, v, g=g_gamma.expand(q.shape[:3]), scale=scale)[0]
        return found

    monkeypatch.setattr(library, "chunk_simple_gla", run)
    operator = with_parameters(registry.operator("lightning_attention"), {"layer": str(layer)})
    x, o = ask(operator, dtype="fp32")
    found = library.chunk_lightning_attn(**x, layer_idx=layer, num_layers=12)
    torch.testing.assert_close(found.double(), o, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("based", "based:parallel_based"),
        ("based", "based:fused_chunk_based"),
        ("rebased", "rebased:parallel_rebased"),
        ("lightning_attention", "lightning_attn:chunk_lightning_attn"),
        ("lightning_attention", "lightning_attn:fused_recurrent_lightning_attn"),
    ],
)
def test_kernels_of_flash_linear_attention_bind_by_name(name: str, place: str) -> None:
    pytest.importorskip("fla")
    module, _, function = place.partition(":")
    kernel = getattr(importlib.import_module(f"fla.ops.{module}"), function)
    bound = bind(registry.operator(name), describe(kernel, function))
    assert set(bound.names) >= {"q", "k", "v"}
    if name == "lightning_attention":
        assert bound.settings == {"layer_idx": 0, "num_layers": 12}
        assert bound.capabilities >= {"scale", "initial_state", "final_state", "packed"}
    if name == "rebased":
        assert bound.settings == {"eps": 1e-6}


# Against performer-pytorch


def test_performer_is_that_of_performer_pytorch_once_nothing_is_added_to_features() -> None:
    library = pytest.importorskip("performer_pytorch.performer_pytorch")
    x, o = ask(registry.operator("performer"))
    q, k, v = heads_first(x["q"], x["k"], x["v"])
    mapped = [
        library.softmax_kernel(t, projection_matrix=x["projection"], is_query=query, eps=0.0)
        for t, query in ((q, True), (k, False))
    ]
    close(library.causal_linear_attention_noncuda(*mapped, v, eps=0.0, chunk_size=5).transpose(1, 2), o)


def test_performer_estimates_softmax_attention() -> None:
    operator = registry.operator("performer")
    x, _ = ask(operator, T=9)
    many = torch.cat([draw_rows(seed) for seed in range(2500)])
    x = {n: x[n] / 3 for n in ("q", "k")} | {"v": x["v"]}
    expected = scaled_dot_product_attention(*heads_first(x["q"], x["k"], x["v"]), is_causal=True).transpose(1, 2)

    def error(projection: Tensor) -> float:
        plain = draw.problem(Case("performer", 2, 9, 3, 8, 5, dtype="fp64", seed=9), operator)
        found = solve(plain.with_(tensors={**x, "projection": projection}), operator)["o"]
        return float((found - expected).abs().max())

    # Lemma 1: the relative deviation of a weight of F independent rows is sqrt((e^|q' + k'|^2 - 1) / F), here at most 0.023.
    assert error(many) < 0.023
    library = pytest.importorskip("performer_pytorch.performer_pytorch")
    torch.manual_seed(0)
    # Its rows come straight from a QR factorisation, whose signs prefer a direction: no number of them makes up for it.
    assert error(library.gaussian_orthogonal_random_matrix(20000, 8).double()) > 0.06


def draw_rows(seed: int) -> Tensor:
    """One block of orthogonal rows."""
    projection = registry.operator("performer").input("projection")
    assert projection.draw is not None
    rows: Tensor = projection.draw(torch.Generator().manual_seed(seed), (8, 8))
    across = rows @ rows.mT
    close(across - across.diag().diag(), torch.zeros(8, 8, dtype=torch.float64))
    return rows


def test_attention_over_all_tokens_is_that_of_performer_pytorch() -> None:
    library = pytest.importorskip("performer_pytorch.performer_pytorch")
    x, o = ask(registry.operator("relu_linear_attention"), T=50)
    q, k, v = heads_first(x["q"].relu(), x["k"].relu(), x["v"])
    close(over_all(library.linear_attention, q, k, v), o)
    x, o = ask(with_parameters(registry.operator("focused_linear_attention"), {"eps": "1e-300"}), T=50)
    q, k = (focused(x[n], x["focus"]) for n in ("q", "k"))
    close(over_all(library.linear_attention, *heads_first(q, k, x["v"])), o)


def over_all(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """O [B, T, H, V] of mapped q, k, v [B, H, T, .]; a row without weight, 0 / 0 there, is zero."""
    seen = q @ k.sum(2, keepdim=True).mT > 0
    return torch.where(seen, attention(q, k, v), 0.0).transpose(1, 2)


def focused(x: Tensor, focus: Tensor) -> Tensor:
    """The focused map on channels of all heads side by side."""
    flat = (x.relu() / torch.nn.functional.softplus(focus)).flatten(2)
    cube = flat.pow(3)
    return (torch.nn.functional.normalize(cube, dim=-1, eps=0) * flat.norm(dim=-1, keepdim=True)).view(x.shape)


# Against PyTorch's own functions, and against formulas in another shape


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("block", [1, 9, 64])
def test_diagonal_attention_is_softmax_attention_block_by_block(block: int, causal: bool) -> None:
    operator = with_parameters(registry.operator("diag_attention"), {"block": str(block), "causal": str(causal)})
    x, o = ask(operator, scale="other")
    scale = draw.problem(Case(operator.name, 2, 37, 3, 8, 5, scale="other", seed=37), operator).scale
    parts = zip(*(x[n].split(block, 1) for n in ("q", "k", "v")), strict=True)
    found = [
        scaled_dot_product_attention(*heads_first(*p), is_causal=causal, scale=scale).transpose(1, 2) for p in parts
    ]
    close(torch.cat(found, 1), o)


@pytest.mark.parametrize("phi", ["elu1", "relu", "identity", "exp"])
@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("norm", ["rms", "rms_outside", "layer"])
def test_norm_attention_normalises_as_pytorch_does(phi: str, scope: str, norm: str) -> None:
    operator = with_parameters(registry.operator("norm_attention"), {"phi": phi, "scope": scope, "norm": norm})
    x, o = ask(operator)
    maps = {"elu1": lambda t: torch.nn.functional.elu(t) + 1, "relu": torch.relu, "identity": lambda t: t}
    q, k = (maps.get(phi, torch.exp)(x[n]) for n in ("q", "k"))
    plain = torch.einsum("bihk,bjhk,bjhv,ij->bihv", q, k, x["v"], torch.ones(37, 37, dtype=torch.float64).tril())
    wide = plain if scope == "head" else plain.flatten(2)
    width = (wide.shape[-1],)
    if norm == "rms_outside":
        wide = wide / (wide.norm(dim=-1, keepdim=True) * width[0] ** -0.5 + 1e-6)
    else:
        wide = rms_norm(wide, width, eps=1e-6) if norm == "rms" else layer_norm(wide, width, eps=1e-6)
    close(wide.view(plain.shape), o)


@pytest.mark.parametrize("length", [0, 40, 1000])
def test_cosformer_weighs_by_the_cosine_of_the_distance(length: int) -> None:
    x, o = ask(with_parameters(registry.operator("cosformer"), {"length": str(length)}))
    token = torch.arange(37, dtype=torch.float64)
    near = (math.pi * (token[:, None] - token) / (2 * (length or 37))).cos().tril()
    weights = torch.einsum("bihk,bjhk,ij->bhij", x["q"].relu(), x["k"].relu(), near)
    total = weights.sum(-1, keepdim=True).clamp_min(1e-6)
    close(((weights / total) @ x["v"].transpose(1, 2)).transpose(1, 2), o)


@pytest.mark.parametrize("heads", [4, 6])
def test_transnormer_llm_decays_rotates_and_normalises(heads: int) -> None:
    operator = with_parameters(registry.operator("transnormer_llm"), {"layer": "3", "layers": "8"})
    problem = draw.problem(Case(operator.name, 2, 19, heads, 8, 5, dtype="fp64", seed=1), operator)
    q, k, v, theta = (problem.tensors[n] for n in ("q", "k", "v", "theta"))
    slopes = {4: [2**-2, 2**-4, 2**-6, 2**-8], 6: [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]}[heads]
    rate = torch.tensor(slopes, dtype=torch.float64) * (1 - 3 / 7 + 1e-5)
    token = torch.arange(19, dtype=torch.float64)
    gap = token[:, None] - token
    turns = torch.polar(torch.ones(1, dtype=torch.float64), gap[:, :, None, None] * theta).real  # [i, j, h, k]
    decay = (-rate[:, None, None] * gap).exp().tril()
    weights = torch.einsum("bihk,bjhk,ijhk,hij->bhij", q, k, turns, decay)
    wide = torch.einsum("bhij,bjhv->bihv", weights, v).flatten(2)
    close(rms_norm(wide, wide.shape[-1:], eps=1e-6).view(v.shape), solve(problem, operator)["o"])


# Parameters, bindings


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("norm_attention", {"norm": "rms_outside", "scope": "all"}),
        ("norm_attention", {"norm": "layer", "phi": "relu"}),
        ("performer", {"eps": "1e-4"}),
        ("cosformer", {"length": "64"}),
        ("focused_linear_attention", {"p": "1"}),
        ("based", {"use_norm": "false"}),
        ("diag_attention", {"block": "2", "causal": "false"}),
    ],
    ids=str,
)
def test_other_parameters_are_right_to_the_last_digits(name: str, parameters: dict[str, str]) -> None:
    operator = with_parameters(registry.operator(name), parameters)
    problem = draw.problem(Case(name, 1, 5, 2, 3, 2, dtype="fp64", cotangent="o", seed=2), operator)
    exact = highprecision(problem, operator)
    found = [stated(problem, operator, form=f) for f in operator.forms] or [solve(problem, operator)]
    for result in found:
        for n, t in result.items():
            close(t, torch.tensor(exact[n].astype(float)))


@pytest.mark.parametrize("names", ["QKV", ("queries", "keys", "values"), "qkv"])
def test_the_causal_product_is_found_as_libraries_spell_it(names: tuple[str, str, str]) -> None:
    def function() -> None: ...

    info = dataclasses.replace(
        describe(function, "f"),
        parameters=describe(lambda a, b, c: None, "f").parameters,
    )
    spelled = tuple(dataclasses.replace(p, name=n) for p, n in zip(info.parameters, names, strict=True))
    bound = bind(registry.operator("causal_product"), dataclasses.replace(info, parameters=spelled))
    assert bound.names == dict(zip("QKV", names, strict=True))
    assert bound.capabilities == {"gradients"}


# Planted bugs

BUGS = {
    "few_blocks": "causal_product",
    "alibi_slopes": "lightning_attention",
    "norm_by_head": "transnormer_llm",
    "padded_length": "cosformer",
    "squared_then_scaled": "based",
    "other_eps": "rebased",
    "norm_over_heads": "norm_attention",
    "sliding_window": "diag_attention:block=16",
    "sums_over_queries": "relu_linear_attention",
    "lengths_by_head": "focused_linear_attention",
}


def one(target: str, operator: str, law: str, monkeypatch: pytest.MonkeyPatch) -> PropertyResult:
    """The result of one property of one target."""
    name, _, parameter = operator.partition(":")
    given = dict([parameter.split("=")]) if parameter else {}
    quick = dataclasses.replace(PROFILES["quick"], name="planted", shrink_seconds=0.0, cases=4)
    monkeypatch.setitem(PROFILES, "planted", quick)
    plan = Plan(target, name, given, properties=(law,), profile="planted", dtypes=("fp32",))
    (result,) = check(plan, Silence())
    return result.properties[0]


@pytest.mark.parametrize(("kernel", "operator"), BUGS.items())
def test_a_planted_bug_is_found(kernel: str, operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = one(f"{PLANTED}::{kernel}", operator, "agreement", monkeypatch)
    assert found.status is Status.VIOLATION, found
    assert found.failure is not None
    assert found.failure.evidence.kind == "wrong_value"


def test_a_stabiliser_that_sees_the_future_is_found_to_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("performer_pytorch")
    for parameters in ("", ":eps=1e-4"):
        found = one(f"{PLANTED}::stabilised_by_all", f"performer{parameters}", "causality_values", monkeypatch)
        assert found.status is Status.VIOLATION, found


def test_a_naive_form_with_heads_before_tokens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fla")
    found = one("fla.ops.based.naive:naive_parallel_based", "based", "agreement", monkeypatch)
    assert found.status is Status.VIOLATION
