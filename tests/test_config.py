"""The table [tool.linverify]: found, checked key by key, and overruled by the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from linverify import cli, config, project
from linverify.errors import ConfigError, UsageError
from linverify.plan import Listener, Plan
from linverify.verdict import TargetResult

TARGET = "linverify.impls.torch_recurrent:gla"
KNOWN = config.known(cli.check)


def written(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text)
    return folder


def values(folder: Path, text: str) -> Mapping[str, Any]:
    return config.values(written(folder, f"[tool.linverify]\n{text}\n"), KNOWN)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What the session was asked, in place of doing it."""
    asked: list[Plan] = []

    def check(plan: Plan, _listener: Listener, *_: object) -> tuple[TargetResult, ...]:
        asked.append(plan)
        return (TargetResult(plan.target, "gla", "", "", "pass"),)

    monkeypatch.setattr(cli.session, "check", check)
    monkeypatch.setattr(cli.session, "replay", lambda plan, _case, listener: check(plan, listener))
    return asked


def test_every_option_of_check_is_a_key() -> None:
    assert {"op", "set", "claims", "device", "dtype", "property", "require", "profile", "time", "seed", "json"} <= set(
        KNOWN
    )
    assert "help" not in KNOWN
    kinds = {key: (option.kind, option.repeatable) for key, option in KNOWN.items()}
    assert kinds["seed"] == (int, False)
    assert kinds["time"] == (float, False)
    assert kinds["dtype"] == (str, True)
    assert kinds["json"] == (str, False)


def test_the_nearest_file_upward_counts_alone(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    written(tmp_path, "[tool.linverify]\nseed = 1\n")
    assert config.values(inner, KNOWN) == {"seed": 1}
    written(tmp_path / "a", "[project]\nname = 'x'\n")
    assert config.values(inner, KNOWN) == {}
    assert project.nearest(inner) == tmp_path / "a" / "pyproject.toml"


def test_values_become_what_the_command_line_would_have_made_of_them(tmp_path: Path) -> None:
    text = "dtype = 'bf16'\nproperty = ['agreement', 'gradients']\ntime = 30\nset = { chunk_size = 32, mode = 'x' }\n"
    found = values(tmp_path, text + "claims = { fp32 = 'ieee', deterministic = true }")
    assert found == {
        "dtype": ["bf16"],
        "only": ["agreement", "gradients"],
        "time": 30.0,
        "settings": ["chunk_size=32", "mode='x'"],
        "claims": ["fp32=ieee", "deterministic=true"],
    }
    assert isinstance(found["time"], float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profle = 'quick'", "unknown key 'profle'; did you mean 'profile'?"),
        ("profile = 'quik'", "unknown profile 'quik'; did you mean 'quick'?"),
        ("dtype = ['bf61']", "unknown dtype 'bf61'; did you mean 'bf16'?"),
        ("property = 'agrement'", "unknown property 'agrement'; did you mean 'agreement'?"),
        ("op = 'gal'", "unknown operator 'gal'"),
        ("time = -1", "expected a positive number of seconds"),
        ("time = true", "expected a number, got True"),
        ("seed = 1.5", "expected a whole number, got 1.5"),
        ("dtype = 16", "expected text or a list of text, got 16"),
        ("dtype = { a = 1 }", "expected text or a list of text"),
        ("device = 'gpu'", "expected cpu, cuda or cuda:0"),
        ("claims = ['1=x']", "expected NAME=VALUE"),
        ("autotune = 'often'", "unknown autotune mode 'often'"),
    ],
)
def test_a_wrong_key_gets_a_line_that_names_file_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        values(tmp_path, text)
    (line,) = raised.value.lines
    key = text.partition(" ")[0]
    assert line.startswith(f"{tmp_path / 'pyproject.toml'}, [tool.linverify] {key}: ")
    assert message in line


def test_a_device_that_only_another_machine_has_is_no_error_of_the_table(tmp_path: Path) -> None:
    assert values(tmp_path, "device = 'cuda:7'") == {"device": "cuda:7"}


@pytest.mark.parametrize("text", ["[tool.linverify\n", "[tool]\nlinverify = 3\n"])
def test_a_broken_file_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.values(written(tmp_path, text), KNOWN)
    (line,) = raised.value.lines
    assert str(tmp_path / "pyproject.toml") in line
    assert issubclass(ConfigError, UsageError)


def test_the_command_line_wins_option_by_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: list[Plan]
) -> None:
    text = "[tool.linverify]\nprofile = 'quick'\ndtype = 'bf16'\nseed = 5\nproperty = 'agreement'\n"
    monkeypatch.chdir(written(tmp_path, text))
    assert cli.main(["check", TARGET, "--dtype", "fp32", "--device", "cpu"]) == 0
    (plan,) = plans
    assert (plan.profile, plan.seed, plan.properties) == ("quick", 5, ("agreement",))
    assert plan.dtypes == ("fp32",)


def test_replay_takes_how_a_target_is_asked_and_not_what_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: list[Plan]
) -> None:
    text = "[tool.linverify]\nproperty = 'contract'\nclaims = { fp32 = 'ieee' }\ndevice = 'cpu'\n"
    monkeypatch.chdir(written(tmp_path, text))
    assert cli.main(["replay", "gla/B1.T3.H1.K4.V6/fp32", "--target", TARGET]) == 0
    (plan,) = plans
    assert plan.properties == ()
    assert plan.claims == {"fp32": "ieee"}


def test_all_wrong_keys_are_told_at_once_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: list[Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(written(tmp_path, "[tool.linverify]\nprofle = 'quick'\nseed = 'x'\n"))
    assert cli.main(["check", TARGET]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("[tool.linverify] ")[2].partition(":")[0] for line in lines] == ["profle", "seed"]
    assert plans == []


def test_a_wrong_table_is_in_nobody_else_s_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written(tmp_path, "[tool.linverify]\nprofle = 'quick'\n"))
    assert cli.main(["list", "operators"]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [("check x --op gated", "gated_delta_rule"), ("check x --property agre", "agreement"), ("repl", "replay")],
)
def test_a_shell_completes_words(
    words: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_WORDS", f"linverify {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    monkeypatch.setenv("_LINVERIFY_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    assert expected in capsys.readouterr().out.split()
