"""Attention with scores and attention over all tokens, against code that nobody here wrote, in float64."""

from collections.abc import Callable, Sequence
from math import pi

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa

from linverify import draw, registry
from linverify.case import Case
from linverify.operator import Operator
from linverify.problem import Problem
from linverify.reference import solve


def ask(
    name: str, T: int = 37, *, sizes: Sequence[int] = (2, 4, 5, 3), **parameters: object
) -> tuple[Problem, Operator]:
    """A problem in float64 of the operator with these parameters; sizes are B, H, K, V."""
    operator = registry.operator(name)
    operator = operator.rebuild(**parameters) if operator.rebuild else operator
    B, H, K, V = sizes
    heads, groups = (H if "H" in operator.axes else 1), (2 if operator.grouped else 0)
    case = Case(name, B, T, heads, K, V, G=groups, dtype="fp64", cotangent="o", seed=T)
    return draw.problem(case, operator), operator


def same(problem: Problem, operator: Operator, theirs: Callable[..., Tensor]) -> None:
    """The same o and the same gradients of every input."""
    leaves = {n: t.clone().requires_grad_() for n, t in problem.tensors.items()}
    o = theirs(**leaves)
    grads = torch.autograd.grad(o, list(leaves.values()), problem.cotangents["o"])
    found = solve(problem, operator)
    assert float(o.detach().abs().max()) > 0
    torch.testing.assert_close(found["o"], o, rtol=1e-11, atol=1e-13)
    for n, g in zip(leaves, grads, strict=True):
        torch.testing.assert_close(found[f"d{n}"], g, rtol=1e-10, atol=1e-12, msg=lambda text, n=n: f"d{n}: {text}")


def first(*x: Tensor) -> tuple[Tensor, ...]:
    """[B, T, H, D] to [B, H, T, D]."""
    return tuple(t.transpose(1, 2) for t in x)


@pytest.mark.parametrize("causal", [True, False])
def test_softmax_attention_is_that_of_torch(causal: bool) -> None:
    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(*first(q, k, v), is_causal=causal, enable_gqa=True).transpose(1, 2)

    same(*ask("softmax_attention", causal=causal), theirs)


@pytest.mark.parametrize("window", [1, 2, 16, 17, 40])
def test_a_window_is_that_of_fla(window: int) -> None:
    naive = pytest.importorskip("fla.ops.attn.naive").naive_parallel_attn
    same(*ask("softmax_attention", window=window), lambda **x: naive(**x, window_size=window)[0])


def masked(mask: Callable[..., Tensor], T: int) -> Callable[..., Tensor]:
    """SDPA under a mask of attn-gym."""
    from torch.nn.attention.flex_attention import create_mask

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shown = create_mask(mask, 1, 1, T, T, device="cpu")
        return sdpa(*first(q, k, v), attn_mask=shown, enable_gqa=True).transpose(1, 2)

    return theirs


@pytest.mark.parametrize("window", [1, 5, 18])
def test_a_window_is_one_more_than_that_of_attn_gym(window: int) -> None:
    masks = pytest.importorskip("attn_gym.masks")
    same(*ask("softmax_attention", window=window), masked(masks.generate_sliding_window(window - 1), 37))
    both = lambda b, h, i, j: (i - j).abs() < window  # noqa: E731  # attn-gym has none for both sides
    same(*ask("softmax_attention", window=window, causal=False), masked(both, 37))


@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_are_the_documents_of_attn_gym(causal: bool) -> None:
    masks = pytest.importorskip("attn_gym.masks")
    problem, operator = ask("softmax_attention", sizes=(1, 4, 5, 3), causal=causal)
    everything = lambda b, h, i, j: i >= (j if causal else 0)  # noqa: E731
    documents = masks.generate_doc_mask_mod(everything, torch.tensor([0, 9, 26, 37]))
    same(problem.with_(lengths=(9, 17, 11)), operator, masked(documents, 37))


def test_efficient_attention_is_linear_attention_transformer_s() -> None:
    theirs = pytest.importorskip("linear_attention_transformer.linear_attention_transformer").linear_attn
    problem, operator = ask("efficient_attention", sizes=(2, 3, 5, 5))
    scaled = problem.with_(scale=5**-0.5)
    same(scaled, operator, lambda q, k, v: theirs(*first(q, k, v)).transpose(1, 2))


class Part(nn.Module):
    """Takes some of the last axis, or appends zeros to it."""

    def __init__(self, start: int, stop: int, pad: int = 0) -> None:
        super().__init__()
        self.start, self.stop, self.pad = start, stop, pad

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[..., self.start : self.stop], (0, self.pad))


class Split(nn.Module):
    """Cuts the last axis into equal parts."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.chunk(self.count, -1)


def test_linformer_is_linformer_s() -> None:
    package = pytest.importorskip("linformer.linformer")
    problem, operator = ask("linformer", sizes=(2, 3, 5, 5))
    module = package.LinformerSelfAttention(45, 37, k=32, heads=3, dim_head=5).double()
    module.to_q, module.to_k, module.to_v = Part(0, 15), Part(15, 30), Part(30, 45)
    module.to_out = nn.Identity()

    def theirs(q: Tensor, k: Tensor, v: Tensor, E: Tensor, F: Tensor) -> Tensor:
        del module.proj_k, module.proj_v
        module.proj_k, module.proj_v = E.T, F.T
        return module(torch.cat([x.flatten(2) for x in (q, k, v)], -1)).unflatten(-1, (3, 5))

    same(problem, operator, theirs)


@pytest.mark.parametrize("causal", [True, False])
def test_gau_is_flash_pytorch_s(causal: bool) -> None:
    package = pytest.importorskip("flash_pytorch.flash_pytorch")
    module = package.GAU(dim=16, causal=causal, add_residual=False).double()
    module.norm, module.to_hidden, module.to_qk = nn.Identity(), Part(0, 6), Part(6, 16)
    module.offsetscale, module.to_out = Split(2), nn.Identity()
    nn.init.zeros_(module.rel_pos_bias.relative_attention_bias.weight)

    def theirs(q: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
        return module(torch.cat([v, u, q, k], -1))

    same(*ask("gau", causal=causal), theirs)


@pytest.mark.parametrize("T", [5, 16, 37])
@pytest.mark.parametrize("causal", [True, False])
def test_mixed_chunks_are_flash_pytorch_s(causal: bool, T: int) -> None:
    package = pytest.importorskip("flash_pytorch.flash_pytorch")
    module = package.FLASH(dim=26, group_size=8, causal=causal).double()
    module.norm, module.to_hidden, module.to_qk = nn.Identity(), Part(0, 6), Part(6, 26)
    module.qk_offset_scale, module.to_out = Split(4), Part(0, 3, pad=23)
    nn.init.zeros_(module.rel_pos_bias.relative_attention_bias.weight)

    def theirs(quad_q: Tensor, quad_k: Tensor, lin_q: Tensor, lin_k: Tensor, v: Tensor, u: Tensor) -> Tensor:
        x = torch.cat([v, u, quad_q, lin_q, quad_k, lin_k], -1)
        return (module(x) - x)[..., :3]

    same(*ask("flash", T, chunk=8, causal=causal), theirs)


def test_agent_attention_is_softmax_attention_twice() -> None:
    def theirs(q: Tensor, k: Tensor, v: Tensor, agent: Tensor) -> Tensor:
        q, k, v, agent = first(q, k, v, agent)
        return sdpa(q, agent, sdpa(agent, k, v)).transpose(1, 2)

    same(*ask("agent_attention"), theirs)


def test_linformer_with_identities_is_softmax_attention() -> None:
    problem, operator = ask("linformer")
    whole = problem.with_tensors(E=torch.eye(37, dtype=torch.float64), F=torch.eye(37, dtype=torch.float64))
    q, k, v = first(*(problem.tensors[n] for n in ("q", "k", "v")))
    torch.testing.assert_close(solve(whole, operator)["o"], sdpa(q, k, v).transpose(1, 2))


def test_hydra_attention_is_linear_attention_with_a_head_for_each_feature() -> None:
    problem, operator = ask("hydra_attention")
    linear = registry.operator("linear_attention").rebuild(causal=False)
    rows = {n: nn.functional.normalize(problem.tensors[n], dim=-1) for n in ("q", "k")} | {"v": problem.tensors["v"]}
    narrow = Problem({n: x[..., None] for n, x in rows.items()}, scale=1.0)
    torch.testing.assert_close(solve(problem, operator)["o"], solve(narrow, linear)["o"][..., 0])


def test_linear_attention_over_all_tokens_is_both_directions() -> None:
    problem, operator = ask("linear_attention", causal=False)
    causal = registry.operator("linear_attention")
    tensors = dict(problem.tensors)
    ahead = solve(Problem(tensors), causal)["o"]
    behind = solve(Problem({n: x.flip(1) for n, x in tensors.items()}), causal)["o"].flip(1)
    own = 5**-0.5 * (tensors["q"] * tensors["k"]).sum(-1, keepdim=True) * tensors["v"]
    torch.testing.assert_close(solve(problem, operator)["o"], ahead + behind - own)


def test_the_angular_kernel_is_cut_off_after_two_terms() -> None:
    problem, operator = ask("linear_angular_attention", half="all", norm=False)
    q, k = (nn.functional.normalize(problem.tensors[n], dim=-1).transpose(1, 2) for n in ("q", "k"))
    cosine = (q @ k.transpose(-1, -2)).clamp(-1, 1)
    rest = 1 - cosine.arccos() / pi - (0.5 + cosine / pi)
    assert float(rest.abs().max()) <= 0.5 - 1 / pi + 1e-12  # reached where two rows are parallel
    v = problem.tensors["v"].transpose(1, 2)
    exact = ((1 - cosine.arccos() / pi) @ v).transpose(1, 2)
    torch.testing.assert_close(solve(problem, operator)["o"] + (rest @ v).transpose(1, 2), exact)


def test_the_authors_of_castling_add_only_the_own_value() -> None:
    problem, operator = ask("linear_angular_attention")
    q, k = (nn.functional.normalize(problem.tensors[n], dim=-1).transpose(1, 2) for n in ("q", "k"))
    v = problem.tensors["v"].transpose(1, 2)
    o = 0.5 * v + q @ (k.mT @ v) / pi
    torch.testing.assert_close(solve(problem, operator)["o"], nn.functional.normalize(o, dim=-1).transpose(1, 2))
