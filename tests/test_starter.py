"""``linverify init``: every operator's starter is right, reads well, and never replaces a file."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from linverify import cli, registry, session
from linverify.errors import UsageError
from linverify.operator import Canonical
from linverify.plan import Plan
from linverify.silence import Silence
from linverify.starter import starter, write
from linverify.verdict import Status

# Values, states, gradients, the domain's edges and the scale: what a starter could get wrong.
LAWS = ("agreement", "gradients", "state_passing", "contract", "default_scale", "exact")


@pytest.mark.parametrize("name", registry.operators())
def test_a_starter_passes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "my_kernel.py"
    write(registry.operator(name), path)
    plan = Plan(str(path), profile="quick", dtypes=("fp32", "bf16"), properties=LAWS, require=LAWS)
    (result,) = session.check(plan, Silence())
    assert (result.operator, result.form, result.backend, result.verdict) == (name, "recurrent", "torch", "pass")
    # small integers stay small integers only without a decay that is none
    laws = [p for p in result.properties if (name, p.name) != ("retention", "exact")]
    assert {p.status for p in laws} == {Status.PASS}, [(p.name, p.status, p.note) for p in result.properties]


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
    for command in (["format", "--check", *lines], ["check", "--isolated", "--select", "E,F,I,D1,D200,D4", *lines]):
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


def test_a_statement_that_cannot_be_carried_over_is_told() -> None:
    def calls_a_helper(x, sizes):  # type: ignore[no-untyped-def]
        return Canonical(q=helped(x["q"]), k=x["k"], v=x["v"])

    gla = registry.operator("gla")
    for statement, why in ((calls_a_helper, "it calls for 'helped'"), (dict, "its source cannot be read")):
        with pytest.raises(UsageError, match=why):
            starter(replace(gla, canonical=statement), "k.py")
