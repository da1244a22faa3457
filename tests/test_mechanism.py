"""What operators state of their mechanisms: rows, their bounds, and how queries fade."""

import math

import pytest
import torch

from linverify.case import Case
from linverify.draw import problem
from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED, Mechanism
from linverify.operator import Operator
from linverify.parameters import with_parameters
from linverify.problem import Problem
from linverify.reference.stated import stated
from linverify.reference.stepwise import stepwise
from linverify.regime import gate_regimes
from linverify.registry import operator, operators
from linverify.rows import last_row, mechanism_of, query_levers
from linverify.stability.probe import read_off

WITH_ROWS = sorted(name for name, o in operators().items() if mechanism_of(o) is not None)
VARIANTS = {
    "normalized_linear_attention": ({"phi": "relu"}, {"phi": "identity"}, {"phi": "exp"}, {"eps": "0.5"}),
    "norm_attention": ({"norm": "layer"}, {"norm": "rms_outside"}, {"eps": "0.5"}, {"scope": "all"}),
    "based": ({"use_norm": "false"},),
    "rebased": ({"use_norm": "false"},),
    "softmax_attention": ({"window": "2"}, {"causal": "false"}),
    "diag_attention": ({"block": "2"},),
    "cosformer": ({"eps": "2.0"},),
}
ASKED = [(n, p) for n in WITH_ROWS for p in ({}, *VARIANTS.get(n, ()))]


def posed(o: Operator, *, G: int = 0) -> Problem:
    """A problem whose gradient comes back to the last token alone."""
    gates = gate_regimes(o)
    gate = "mild" if "mild" in gates else gates[0]
    found = problem(Case(o.name, 3, 5, 2, 16, 8, G=G, dtype="fp64", gate=gate, cotangent="o", seed=3), o)
    upstream = torch.zeros_like(found.cotangents["o"])
    upstream[:, -1] = found.cotangents["o"][:, -1]
    return found.with_(cotangents={"o": upstream})


def solved(o: Operator, p: Problem) -> dict[str, torch.Tensor]:
    return (stated if o.forms else stepwise)(p, o)


def test_the_operators_with_rows_are_those_without_low_rank_terms() -> None:
    expected = {
        *("softmax_attention", "diag_attention", "normalized_linear_attention", "relu_linear_attention", "cosformer"),
        *("performer", "norm_attention", "transnormer_llm", "based", "rebased", "mlstm", "linear_attention", "gla"),
        *("retention", "simple_gla", "lightning_attention", "mamba2", "rwkv5", "rwkv6"),
    }
    assert set(WITH_ROWS) == expected


@pytest.mark.parametrize(("name", "parameters"), ASKED, ids=[f"{n}-{p}" for n, p in ASKED])
def test_rows_are_those_of_the_definition(name: str, parameters: dict[str, str]) -> None:
    o = with_parameters(operator(name), parameters)
    p = posed(o)
    row, exact = last_row(o, p.tensors), solved(o, p)
    facts = mechanism_of(o)
    assert facts is not None
    if facts.norm == "none":
        assert torch.allclose(row.mixed, exact["o"][:, -1])
    key = o.of_kind("key")[0].name
    got = exact[f"d{key}"][:, row.seen]
    found = read_off(got, row, 0.0)
    # a key's gradient has no other direction than its score's
    assert torch.allclose(found.transpose(1, 2)[..., None] * row.lever, got, atol=1e-12)
    upstream = p.cotangents["o"][:, -1]
    away = (upstream[:, :, None] * row.distances).sum(-1)
    if facts.norm == "none":
        assert torch.allclose(found, row.slopes / row.divisor[..., None] * away, atol=1e-12)
    assert bool((found.abs() <= row.bounds(upstream) * (1 + 1e-12)).all())
    unseen = [t for t in range(5) if t not in row.seen.tolist()]
    assert not exact[f"d{key}"][:, unseen].any()


@pytest.mark.parametrize(("name", "parameters"), ASKED, ids=[f"{n}-{p}" for n, p in ASKED])
def test_a_query_moves_its_scores_and_nothing_else(name: str, parameters: dict[str, str]) -> None:
    o = with_parameters(operator(name), parameters)
    p = posed(o)
    row, query = last_row(o, p.tensors), o.of_kind("query")[0].name
    limit = (row.bounds(p.cotangents["o"][:, -1]) * query_levers(o, p.tensors)).sum(-1)
    assert bool((solved(o, p)[f"d{query}"][:, -1].norm(dim=-1) <= limit * (1 + 1e-12)).all())


def test_the_bound_is_attained_towards_the_token() -> None:
    for name in ("softmax_attention", "normalized_linear_attention", "cosformer", "based", "gla"):
        o = operator(name)
        p = posed(o)
        row = last_row(o, p.tensors)
        upstream = torch.zeros_like(p.cotangents["o"])
        upstream[:, -1] = torch.nn.functional.normalize(row.distances[:, :, 0], dim=-1)
        key = o.of_kind("key")[0].name
        found = read_off(solved(o, p.with_(cotangents={"o": upstream}))[f"d{key}"], row, 0.0)
        assert torch.allclose(found[..., 0].abs(), row.bounds(upstream[:, -1])[..., 0])


def test_heads_that_share_keys_have_the_first_one_s_lever() -> None:
    o = operator("softmax_attention")
    p = posed(o, G=1)
    upstream = p.cotangents["o"].clone()
    upstream[:, :, 1] = 0
    p = p.with_(cotangents={"o": upstream})
    row = last_row(o, p.tensors)
    got = solved(o, p)["dk"]
    found = (got * row.lever).sum(-1) / row.lever.square().sum(-1)
    away = (upstream[:, -1, 0][:, None] * row.distances[:, 0]).sum(-1)
    assert torch.allclose(found[..., 0], row.weights[:, 0] * away)


def test_fading_makes_scores_smaller_by_the_factor() -> None:
    factor = torch.tensor(2.0**-9, dtype=torch.float64)
    for name, parameters in (
        ("normalized_linear_attention", {}),
        ("normalized_linear_attention", {"phi": "exp"}),
        ("relu_linear_attention", {}),
        ("rebased", {}),
        ("norm_attention", {}),
    ):
        o = with_parameters(operator(name), parameters)
        facts = mechanism_of(o)
        assert facts is not None
        assert facts.shrink is not None
        tensors = dict(posed(o).tensors)
        before = last_row(o, tensors).scores
        tensors["q"] = facts.shrink(tensors["q"], factor.expand_as(tensors["q"]))
        assert torch.allclose(last_row(o, tensors).scores, before * factor, rtol=1e-9)


def test_a_performer_s_query_fades_by_about_the_factor() -> None:
    o = operator("performer")
    facts = mechanism_of(o)
    assert facts is not None
    assert facts.shrink is not None
    tensors = dict(posed(o).tensors)
    before = last_row(o, tensors).total
    factor = torch.full_like(tensors["q"], 2.0**-9)
    tensors["q"] = facts.shrink(tensors["q"], factor)
    ratio = last_row(o, tensors).total / before
    assert bool((ratio < 0.5).all())


@pytest.mark.parametrize(
    ("facts", "cap", "promise", "slope", "crossover"),
    [
        (Mechanism(), 1.0, BOUNDED, 0.0, None),
        (Mechanism(weight="exponential", signed=True), 0.25, BOUNDED, 0.0, None),
        (Mechanism(divisor="sum", eps=1e-6), 1e6, BY_EPS, -1.0, 1e-6),
        (Mechanism(divisor="sum"), math.inf, UNBOUNDED, -1.0, None),
        (Mechanism(divisor="sum", eps=1e-6, signed=True), math.inf, UNBOUNDED, -1.0, 1e-6),
        (Mechanism(divisor="clamp", eps=1e-6), 1e6, BY_EPS, -1.0, 1e-6),
        (Mechanism(divisor="floor", signed=True), 1.0, BOUNDED, -1.0, 1.0),
        (Mechanism(divisor="sum", eps=1e-6, least=0.5), 1 / (0.5 + 1e-6), BOUNDED, 0.0, None),
        (Mechanism(norm="rms", norm_eps=1e-6), 1e3, BY_EPS, -1.0, 8e-3),
        (Mechanism(norm="rms_outside", norm_eps=1e-6), 1e6, BY_EPS, -1.0, 8e-6),
        (Mechanism(norm="rms"), math.inf, UNBOUNDED, -1.0, None),
    ],
)
def test_what_a_mechanism_promises(
    facts: Mechanism, cap: float, promise: str, slope: float, crossover: float | None
) -> None:
    assert facts.cap == pytest.approx(cap)
    assert (facts.promise, facts.slope) == (promise, slope)
    assert facts.crossover(64) == (None if crossover is None else pytest.approx(crossover))
    assert facts.words


def test_a_mechanism_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="a divisor or a norm"):
        Mechanism(divisor="sum", norm="rms")
    with pytest.raises(ValueError, match="at least 0"):
        Mechanism(divisor="sum", eps=-1.0)


def test_an_operator_without_rows_says_so() -> None:
    o = operator("delta_rule")
    with pytest.raises(TypeError, match="delta_rule states no mechanism"):
        last_row(o, posed(o).tensors)
    with pytest.raises(TypeError, match="delta_rule states no mechanism"):
        query_levers(o, posed(o).tensors)
