"""The statements of the operators, and their discovery."""

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from linverify import draw, registry
from linverify.arguments import group_of_head
from linverify.arithmetic import MpArray
from linverify.binding import FunctionInfo, Parameter, bind
from linverify.case import Case
from linverify.errors import LinverifyError, UsageError
from linverify.identities import IDENTITIES
from linverify.operator import Operator
from linverify.reference import chunkwise, solve
from linverify.reference.question import sizes_of
from linverify.share import share_keys
from tests.kinds import PLAIN, suited

EXPECTED = {
    "linear_attention": "qkv",
    "retention": "qkv",
    "simple_gla": "qkvg",
    "gla": "qkvg",
    "rwkv6": "qkvwu",
    "delta_rule": ["q", "k", "v", "beta"],
    "gated_delta_rule": ["q", "k", "v", "g", "beta"],
    "kda": ["q", "k", "v", "g", "beta"],
    "rwkv7": "qwkvab",
    "mamba2": ["x", "dt", "A", "B", "C"],
}
ALL = sorted(EXPECTED)


@pytest.mark.parametrize("name", ALL)
def test_arguments_are_those_of_the_table(name: str) -> None:
    assert [i.name for i in registry.operator(name).inputs] == list(EXPECTED[name])


@pytest.mark.parametrize("name", sorted(registry.operators()))
def test_every_spelling_belongs_to_one_argument(name: str) -> None:
    operator = registry.operator(name)
    spellings = [s for i in operator.inputs for s in (i.name, *i.aliases)]
    spellings += [*operator.state_arguments, *operator.final_state_arguments, "scale", "cu_seqlens"]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize("name", sorted(registry.operators()))
def test_statement_is_complete(name: str) -> None:
    operator = registry.operator(name)
    assert operator.identities <= set(IDENTITIES)
    assert "arXiv:" in operator.source
    assert len(operator.hazards) >= 3
    assert operator.summary.endswith(".")
    assert "value" in {i.kind for i in operator.inputs}
    assert all(r.to in registry.operators() for r in operator.reductions)
    assert set(operator.value_first) <= set(operator.state_arguments)


@pytest.mark.parametrize("name", [n for n, o in sorted(registry.operators().items()) if o.canonical])
def test_canonical_is_the_same_in_both_arithmetics(name: str) -> None:
    operator = registry.operator(name)
    case = suited(Case(name, B=2, T=3, H=4, K=5, V=6, dtype="fp64", gate=_gate(operator)), operator)
    problem = draw.problem(case, operator)
    sizes = sizes_of(problem, operator)
    plain = operator.recurrence(problem.tensors, sizes)
    exact = operator.recurrence({n: MpArray(t.numpy()) for n, t in problem.tensors.items()}, sizes)
    for term in ("q", "k", "v", "log_decay", "beta", "a", "b", "bonus"):
        ours, theirs = getattr(plain, term), getattr(exact, term)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            digits = torch.tensor(theirs.value.astype(float))
            assert ours.shape == digits.shape
            # one operation apart, rounded once here and in many digits there
            assert torch.equal(ours.float(), digits.float())
    assert plain.q.shape == plain.k.shape
    assert plain.q.shape[:3] == plain.v.shape[:3]
    if name in PLAIN:
        assert (plain.q.shape, plain.v.shape) == ((2, 3, 4, 5), (2, 3, 4, 6))


def _gate(operator: Operator) -> str:
    return "mild" if operator.gated else "none"


def test_retention_decays_by_its_head() -> None:
    operator = registry.operator("retention")
    q = torch.full((1, 2, 3, 4), torch.nan, dtype=torch.float64)  # a constant must not take NaN from the query
    decay = operator.canonical({"q": q, "k": q, "v": q}, {"H": 3}).log_decay
    assert decay is not None
    assert decay.shape == (1, 1, 3, 1)
    assert torch.equal(decay.exp()[0, 0, :, 0].float(), torch.tensor([1 - 2**-5, 1 - 2**-6, 1 - 2**-7]))


def test_heads_are_spread_evenly_over_groups() -> None:
    assert group_of_head({"H": 6, "G": 2}) == [0, 0, 0, 1, 1, 1]
    assert group_of_head({"H": 3, "G": 3}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "reduction"), [(n, i) for n, o in sorted(registry.operators().items()) for i in range(len(o.reductions))]
)
@pytest.mark.parametrize("dtype", ["fp64", "bf16"])
def test_reductions_reach_the_simpler_operator(name: str, reduction: int, dtype: str) -> None:
    operator = registry.operator(name)
    found = operator.reductions[reduction]
    case = Case(
        name, B=2, T=19, H=4, K=5, V=6, G=2 if operator.grouped else 0, dtype=dtype, gate=_gate(operator), seed=5
    )
    drawn = draw.problem(suited(case.with_(state="normal", final_state=True, scale="other"), operator), operator)
    restricted = found.restrict(drawn.tensors)
    assert {n: (t.shape, t.dtype) for n, t in restricted.items()} == {
        n: (t.shape, t.dtype) for n, t in drawn.tensors.items()
    }
    simpler = registry.operator(found.to)
    translated = found.translate(restricted)
    assert list(translated) == [i.name for i in simpler.inputs]
    ours = solve(drawn.with_(tensors=restricted), operator)
    theirs = solve(drawn.with_(tensors=translated), simpler)
    assert set(ours) == set(theirs) == ({"o", "state"} if operator.state_axes else {"o"})
    order = [simpler.o_axes.index(a) for a in operator.o_axes]
    torch.testing.assert_close(ours["o"], theirs["o"].permute(order))
    for result in ours.keys() - {"o"}:
        torch.testing.assert_close(ours[result], theirs[result])


def test_what_the_papers_say_of_each_other_is_stated() -> None:
    stated = {(n, r.to) for n, o in registry.operators().items() for r in o.reductions}
    assert stated >= {
        *(("gated_delta_rule", "delta_rule"), ("kda", "gated_delta_rule"), ("dplr", "kda"), ("dplr", "rwkv7")),
        *(("mamba2", "simple_gla"), ("mlstm", "linear_attention"), ("rwkv6", "gla"), ("retention", "simple_gla")),
    }


def test_an_unrestricted_operator_is_not_the_simpler_one() -> None:
    gla = registry.operator("gla")
    drawn = draw.problem(Case("gla", T=19, gate="production", dtype="fp64"), gla)
    translated = gla.reductions[1].translate(drawn.tensors)
    ungated = chunkwise(drawn.with_(tensors=translated), registry.operator("linear_attention"))
    assert not torch.allclose(ungated["o"], chunkwise(drawn, gla)["o"])


def test_shared_keys_equal_repeated_keys() -> None:
    plain = registry.operator("gated_delta_rule")
    shared = share_keys(plain)
    case = Case("gated_delta_rule", B=2, T=7, H=4, K=5, V=6, G=2, dtype="fp64", gate="mild", cotangent="o")
    drawn = draw.problem(case, shared)
    assert drawn.tensors["k"].shape == (2, 7, 2, 5)
    repeated = {n: t.repeat_interleave(2, 2) if n in ("q", "k") else t for n, t in drawn.tensors.items()}
    ours, theirs = chunkwise(drawn, shared), chunkwise(drawn.with_(tensors=repeated), plain)
    torch.testing.assert_close(ours["o"], theirs["o"])
    torch.testing.assert_close(ours["dk"], theirs["dk"].reshape(2, 7, 2, 2, 5).sum(3))
    assert share_keys(shared) is shared


def test_names_are_understood_as_people_write_them() -> None:
    assert registry.operator("SSD").name == "mamba2"
    assert registry.operator("gated-delta-rule").name == "gated_delta_rule"
    with pytest.raises(UsageError, match="did you mean 'gla'"):
        registry.operator("gala")


def _package(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> str:
    """A package in which `modules` live, for one test."""
    room = folder / "room"
    room.mkdir()
    (room / "__init__.py").write_text("")
    for name, text in modules.items():
        (room / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for known in [m for m in sys.modules if m.split(".")[0] == "room"]:
        monkeypatch.delitem(sys.modules, known)
    importlib.invalidate_caches()
    return "room"


def test_scanning_skips_helpers_and_sorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = _package(tmp_path, monkeypatch, beta="", _helper="raise RuntimeError", alpha="")
    assert [m.__name__ for m in registry.modules(room)] == ["room.alpha", "room.beta"]


def test_two_operators_of_one_name_are_an_error_that_names_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from linverify.registry import operator\nOPERATOR = operator('gla')\n"
    room = _package(tmp_path, monkeypatch, one=text, two=text)
    found = [importlib.import_module(f"{room}.{n}") for n in ("one", "two")]
    assert isinstance(found[0], types.ModuleType)
    registry._operators.cache_clear()
    try:
        monkeypatch.setattr(registry, "modules", lambda _: iter(found))
        with pytest.raises(LinverifyError, match=r"'gla': in room\.one and in room\.two"):
            registry.operators()
    finally:
        registry._operators.cache_clear()


def test_a_file_that_states_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = _package(tmp_path, monkeypatch, empty="")
    with pytest.raises(LinverifyError, match=r"room\.empty must assign OPERATOR"):
        list(registry._collect(room, "OPERATOR", Operator))


def test_every_property_and_implementation_is_found_under_its_own_name() -> None:
    assert set(registry.properties()) == {p.name for p in registry.properties().values()}
    found = registry.implementations()
    assert len({i.target_text for i in found}) == len(found)
    assert {i.operator for i in found} == set(registry.operators())


FLA = {
    "gla:chunk_gla": "gla",
    "gla:fused_recurrent_gla": "gla",
    "simple_gla:chunk_simple_gla": "simple_gla",
    "delta_rule:chunk_delta_rule": "delta_rule",
    "gated_delta_rule:chunk_gated_delta_rule": "gated_delta_rule",
    "rwkv6:chunk_rwkv6": "rwkv6",
    "rwkv7:chunk_rwkv7": "rwkv7",
    "rwkv7:fused_recurrent_rwkv7": "rwkv7",
    "kda:chunk_kda": "kda",
    "retention:chunk_retention": "retention",
    "linear_attn:chunk_linear_attn": "linear_attention",
}


def describe(function: Callable[..., object], name: str) -> FunctionInfo:
    """What the worker tells of a function."""
    parameters = inspect.signature(function).parameters.values()
    return FunctionInfo(
        name,
        tuple(
            Parameter(p.name, p.kind.name, p.default is p.empty and p.kind is not p.VAR_KEYWORD, repr(p.default))
            for p in parameters
        ),
    )


@pytest.mark.parametrize("function", FLA)
def test_functions_of_flash_linear_attention_bind_by_name(function: str) -> None:
    pytest.importorskip("fla")
    module, _, name = function.partition(":")
    operator = registry.operator(FLA[function])
    info = describe(getattr(importlib.import_module(f"fla.ops.{module}"), name), name)
    bound = bind(operator, info)
    assert set(bound.names) >= {i.name for i in operator.inputs} | {
        "scale",
        "initial_state",
        "output_final_state",
        "cu_seqlens",
    }
    assert bound.names["q"] in ("q", "r")
    assert bound.names.get("w", "w") == "w"
    assert bound.capabilities >= {"scale", "initial_state", "final_state", "packed", "gradients"}
    assert not bound.state_value_first
    assert bound.settings == ({"normalize": False} if operator.name == "linear_attention" else {})


def mamba_chunk_scan_combined(
    x: object,
    dt: object,
    A: object,
    B: object,
    C: object,
    chunk_size: int,
    D: object = None,
    z: object = None,
    dt_bias: object = None,
    initial_states: object = None,
    seq_idx: object = None,
    cu_seqlens: object = None,
    dt_softplus: bool = False,
    dt_limit: object = (0.0, float("inf")),
    return_final_states: bool = False,
) -> None:
    """Stand in for the function of that name in mamba_ssm.ops.triton.ssd_combined: its parameters."""


def test_mamba_keeps_its_state_with_the_value_axis_first() -> None:
    info = describe(mamba_chunk_scan_combined, "mamba_chunk_scan_combined")
    bound = bind(registry.operator("ssd"), info, settings={"chunk_size": 64})
    assert bound.state_value_first
    assert bound.names["output_final_state"] == "return_final_states"
    assert "scale" not in bound.names
