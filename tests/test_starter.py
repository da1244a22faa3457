"""``linverify init``: every operator's starter is right, reads well, and never replaces a file."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from linverify import cli, registry, session
from linverify.case import Case
from linverify.draw import problem
from linverify.errors import UsageError
from linverify.operator import Canonical
from linverify.plan import Plan
from linverify.silence import Silence
from linverify.starter import starter, write
from linverify.verdict import Status

# Values, states, gradients, the domain's edges and the scale: what a starter could get wrong.
LAWS = ("agreement", "gradients", "state_passing", "default_scale", "exact")
WRITTEN = [n for n, o in registry.operators().items() if "built_in" not in starter(o, "k.py")]
CALLING = [n for n in registry.operators() if n not in WRITTEN]


def test_a_recurrence_is_written_out() -> None:
    assert {
        "gla",
        "delta_rule",
        "gated_delta_rule",
        "kda",
        "rwkv6",
        "rwkv7",
        "mamba2",
        "retention",
        "simple_gla",
    } <= set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_starter_that_is_written_out_passes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "my_kernel.py"
    write(registry.operator(name), path)
    plan = Plan(str(path), profile="quick", dtypes=("fp32",), properties=LAWS, require=LAWS)
    (result,) = session.check(plan, Silence())
    assert (result.operator, result.form, result.backend) == (name, "recurrent", "torch")
    statuses = {p.name: p.status for p in result.properties}
    assert set(statuses.values()) <= {Status.PASS, Status.NOT_APPLICABLE}, statuses
    assert {n for n, s in statuses.items() if s is Status.PASS} >= set(LAWS[:-1]), statuses


@pytest.mark.parametrize("name", CALLING)
def test_a_starter_that_calls_the_definition_gives_its_results(name: str, tmp_path: Path) -> None:
    operator = registry.operator(name)
    if operator.own_axes:  # its tensors are shaped for a target by the worker
        write(operator, tmp_path / "k.py")
        plan = Plan(str(tmp_path / "k.py"), profile="quick", dtypes=("fp32",), properties=("agreement",))
        assert [r.verdict for r in session.check(plan, Silence())] == ["pass"]
        return
    names: dict[str, object] = {}
    exec(starter(operator, "k.py"), names)
    built_in = next(i for i in registry.implementations() if (i.operator, i.form) == (name, operator.form_names[0]))
    module, _, function = built_in.target_text.partition(":")
    expected = getattr(importlib.import_module(module), function)
    tensors = problem(Case(name, 2, 6, 2, 4, 6, 2 * operator.grouped, dtype="fp32"), operator).tensors
    result = names[name](**tensors, scale=0.5)  # type: ignore[operator]
    o = result[0] if operator.state_axes else result
    assert torch.equal(o, expected(**tensors, scale=0.5)[0])
    assert not torch.equal(o, torch.zeros_like(o))


def test_a_mistake_in_a_starter_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "my_kernel.py"
    text = starter(registry.operator("rwkv7"), "my_kernel.py")
    wrong = text.replace("    removed = ", "    state = decay[:, t, :, :, None] * state\n        removed = ").replace(
        "decay\n        state = decay[:, t, :, :, None] * state", "decay"
    )
    assert wrong.count("state = decay") == 1 == text.count("state = decay")
    path.write_text(wrong)
    plan = Plan(str(path), profile="quick", dtypes=("fp32",), properties=("agreement",))
    (result,) = session.check(plan, Silence())
    assert result.verdict == "violation"


def test_starters_are_formatted_and_clean(tmp_path: Path) -> None:
    for name, operator in registry.operators().items():
        write(operator, tmp_path / f"{name}.py")
    lines = ["--line-length", "120"]
    for command in (
        ["format", "--check", *lines],
        ["check", "--isolated", "--select", "E,F,I,D1,D200,D4", "--line-length", "128"],
    ):
        ruff = [sys.executable, "-m", "ruff", *command, str(tmp_path)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_writes_and_says_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "gla"]) == 0
    assert capsys.readouterr().out == "my_kernel.py holds gla; next: linverify check my_kernel.py\n"
    assert '@linverify.kernel("gla"' in (tmp_path / "my_kernel.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gla"], "my_kernel.py is there already and is left as it is; name another file"),
        (["gla", "nowhere/k.py"], "cannot write nowhere/k.py: No such file or directory"),
        (["gla", "kernel"], "kernel: expected the name of a Python file"),
        (["gal"], "unknown operator 'gal'"),
    ],
)
def test_what_cannot_be_written_is_a_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_kernel.py").write_text("mine")
    assert cli.main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "my_kernel.py").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["my_kernel.py"]


def helped(x: object) -> object:
    return x


def test_a_statement_that_cannot_be_carried_over_is_called() -> None:
    def calls_a_helper(x, sizes):  # type: ignore[no-untyped-def]
        return Canonical(q=helped(x["q"]), k=x["k"], v=x["v"])

    gla = registry.operator("gla")
    assert "built_in" not in starter(gla, "k.py")
    for statement in (calls_a_helper, dict, lambda x, _: Canonical(**x)):
        assert "import gla as built_in" in starter(replace(gla, canonical=statement), "k.py")
    assert "import gla as built_in" in starter(replace(gla, readout=lambda o, *_: 2 * o), "k.py")
    with pytest.raises(UsageError, match="no built-in form"):
        starter(replace(gla, name="other", canonical=calls_a_helper), "k.py")
