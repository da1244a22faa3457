"""Target texts, and what a function's parameters stand for."""

import sys

import pytest

from linverify.binding import Description, FunctionInfo, Parameter, bind
from linverify.errors import UsageError
from linverify.implementation import Claim
from linverify.operator import Canonical, Input, Operator
from linverify.target import parse

_AXES = ("B", "T", "H")


def operator(*, gate=None, **facts) -> Operator:
    inputs = [
        Input("q", (*_AXES, "K"), "query", aliases=("r",)),
        Input("k", (*_AXES, "K"), "key"),
        Input("v", (*_AXES, "V"), "value", aliases=("x",)),
    ]
    if gate is not None:
        inputs.append(Input("g", gate, "log_gate", aliases=("gk", "w") if "K" in gate else ("w",)))
    stated = {"summary": "", "equations": "", "source": "", "identities": frozenset()}
    return Operator("op", inputs=tuple(inputs), canonical=lambda x, _: Canonical(**x), **{**stated, **facts})


def function(text: str) -> FunctionInfo:
    """`q k scale=None *args **kwargs`, as a signature."""
    parameters = []
    for word in text.split():
        name, given, default = word.lstrip("*").partition("=")
        kind = {0: "POSITIONAL_OR_KEYWORD", 1: "VAR_POSITIONAL", 2: "VAR_KEYWORD"}[word.count("*")]
        parameters.append(Parameter(name, kind, not given and "*" not in word, default))
    return FunctionInfo("f", tuple(parameters))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "kernels.py").write_text("def gla(q, k, v): ...\n")
    (tmp_path / "broken.py").write_text("x = 1\ndef gla(:\n")
    (tmp_path / "nulls.py").write_bytes(b"x = 1\0")
    (tmp_path / "notes.txt").write_text("nothing")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["kernels.py::gla", "kernels.py:gla", "./kernels.py::gla"])
def test_file_and_function(folder, text):
    spec = parse(text)
    assert (spec.kind, spec.location, spec.function) == ("file", str(folder / "kernels.py"), "gla")
    assert spec.text == text
    assert spec.label == "kernels.py"


def test_file_alone(folder):
    assert parse("kernels.py").function is None
    assert parse(str(folder / "kernels.py")).location == str(folder / "kernels.py")


@pytest.mark.parametrize(
    ("text", "name"), [("fla.ops.gla:chunk_gla", "chunk_gla"), ("fla.ops:gla.chunk", "gla.chunk"), ("fla", None)]
)
def test_module(folder, text, name):
    spec = parse(text)
    assert (spec.kind, spec.location, spec.function) == ("module", text.partition(":")[0], name)


def test_nothing_is_imported(folder):
    (folder / "loud.py").write_text("raise SystemExit(9)\n")
    parse("loud.py::f")
    parse("loud:f")
    assert "loud" not in sys.modules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("missing.py", "no such file: missing.py"),
        ("missing.py::gla", "no such file: missing.py"),
        ("deep/missing:gla", "no such file: deep/missing"),
        ("broken.py", "broken.py, line 2: syntax error"),
        ("broken.py::gla", "broken.py, line 2: syntax error"),
        ("nulls.py", "nulls.py"),
        ("notes.txt", "no Python file"),
        (".", "is a folder"),
        ("kernels.py::not a name", "expected a function name"),
        ("what is this", "is no target"),
        ("", "is no target"),
    ],
)
def test_bad_text(folder, text, words):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_follow_the_signature_not_its_order():
    binding = bind(operator(), function("v r k sm_scale=None offsets=None h0=None return_final_states=False"))
    assert binding.names == {
        "q": "r",
        "k": "k",
        "v": "v",
        "scale": "sm_scale",
        "initial_state": "h0",
        "output_final_state": "return_final_states",
        "cu_seqlens": "offsets",
    }
    assert binding.capabilities == {"scale", "packed", "initial_state", "final_state", "gradients"}


def test_capabilities_come_from_operator_and_signature():
    assert bind(operator(), function("q k v **kwargs")).capabilities == {"gradients"}
    assert bind(operator(grouped=True), function("q k v")).capabilities == {"gradients", "groups"}
    assert "groups" in bind(operator(), function("q k v"), claims={"gva": "true"}).capabilities
    stateless = bind(operator(state_axes=()), function("q k v initial_state=None output_final_state=False"))
    assert stateless.capabilities == {"gradients"}


@pytest.mark.parametrize(
    ("gate", "signature", "expected"),
    [
        ((*_AXES, "K"), "q k v g=None gk=None gv=None", "gk"),
        ((*_AXES, "K"), "q k v g", "g"),
        ((*_AXES, "K"), "q k v w", "w"),
        (_AXES, "q k v g=None gk=None", "g"),
    ],
)
def test_gate_of_a_channel_and_of_a_head(gate, signature, expected):
    assert bind(operator(gate=gate), function(signature)).names["g"] == expected


def test_scalar_gate_does_not_go_into_a_channel_gate():
    with pytest.raises(UsageError, match="no parameter for input 'g'"):
        bind(operator(gate=_AXES), function("q k v gk=None"))


def test_pins_are_passed_where_they_change_something():
    pinned = operator(pins={"normalize": False, "head_first": False})
    assert bind(pinned, function("q k v normalize=True head_first=False")).settings == {"normalize": False}
    assert bind(pinned, function("q k v head_first=True")).settings == {"head_first": False}
    assert bind(pinned, function("q k v **kwargs")).settings == {}
    assert bind(pinned, function("q k v normalize=True"), settings={"normalize": True}).settings == {"normalize": True}
    assert "normalize=False" in bind(pinned, function("q k v normalize=True")).notes[0]


def test_settings_fill_parameters():
    assert bind(operator(), function("q k v chunk_size"), settings={"chunk_size": 64}).settings == {"chunk_size": 64}
    assert bind(operator(), function("q k v **kwargs"), settings={"anything": 1}).settings == {"anything": 1}


def test_value_first_states():
    stated = operator(state_arguments=("initial_state", "state_vk"), value_first=("state_vk",))
    assert bind(stated, function("q k v state_vk=None")).state_value_first
    assert not bind(stated, function("q k v initial_state=None")).state_value_first
    flagged = function("q k v initial_state=None state_v_first=False")
    assert bind(stated, flagged, settings={"state_v_first": True}).state_value_first
    assert not bind(stated, flagged, settings={"state_v_first": False}).state_value_first


def test_another_default_scale_is_noted():
    (note,) = bind(operator(), function("q k v scale=1.0")).notes
    assert "scale=1.0" in note
    assert bind(operator(), function("q k v scale=None")).notes == ()
    assert bind(operator(default_scale=1.0), function("q k v scale=1.0")).notes == ()


@pytest.mark.parametrize(
    ("signature", "settings", "words"),
    [
        ("q k", {}, "no parameter for input 'v' of op; expected one named v, x"),
        ("a b c", {}, "no parameter for input 'q'"),
        ("*args", {}, "no parameter for input 'q'"),
        ("q k v mask", {}, "required parameter 'mask' cannot be filled; pass --set mask=VALUE"),
        ("q k v chunk_size=64", {"chunk_sise": 1}, "did you mean 'chunk_size'?"),
        ("q k v scale=None", {"scale": 1.0}, "do not set it"),
        ("q k v", {"v": 1.0}, "do not set it"),
    ],
)
def test_what_cannot_be_bound(signature, settings, words):
    with pytest.raises(UsageError) as caught:
        bind(operator(), function(signature), settings=settings)
    assert words in str(caught.value)


def test_positional_only_parameters_are_refused():
    info = FunctionInfo("f", tuple(Parameter(n, "POSITIONAL_ONLY", required=True) for n in "qkv"))
    with pytest.raises(UsageError, match="takes no keyword"):
        bind(operator(), info)


def test_description_survives_json():
    info = FunctionInfo("f", (Parameter("q", "KEYWORD_ONLY", required=True),), (Claim("gla", "naive"),), "f.py", 3)
    description = Description((info,), uses_triton=True, import_seconds=0.5, versions={"torch": "2"})
    assert Description.from_json(description.to_json()) == description
