"""Ways in for others: the GitHub Action's script, the workflows that show it, and the pre-commit hook."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import linverify
from linverify import cli, config, pre_commit

ROOT = Path(__file__).resolve().parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
(CHECK,) = [s for s in ACTION["runs"]["steps"] if s.get("id") == "check"]
KERNEL = 'import torch\nimport linverify\n\n@linverify.kernel("gla")\ndef f(q, k, v, g):\n    return {}\n'
NOTHING = "torch.zeros_like(v)"


def ran(folder: Path, **inputs: str) -> tuple[int, str, str]:
    """Run the action's check as a runner would: its exit code, its output, and what it hands on."""
    given = {name: str(i.get("default", "")) for name, i in ACTION["inputs"].items()} | inputs
    env = {n: given[v.removeprefix("${{ inputs.").removesuffix(" }}")] for n, v in CHECK["env"].items()}
    handed = folder / "handed"
    handed.touch()
    path = os.pathsep.join([str(Path(linverify.__path__[0]).parent), str(folder)])
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", CHECK["run"]],
        cwd=folder,
        env={**os.environ, **env, "PYTHON": sys.executable, "GITHUB_OUTPUT": str(handed), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr, handed.read_text()


def test_the_action_checks_and_hands_on_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "wrong one.py").write_text(KERNEL.format(NOTHING))
    options = "--property=agreement\n\n--dtype=fp32\n"
    code, output, handed = ran(tmp_path, targets="wrong one.py\n", profile="quick", device="cpu", options=options)
    assert code == 1, output
    assert "VIOLATION" in output
    assert handed == "exit-code=1\n"
    kept = str(ACTION["runs"]["steps"][-1]["with"]["path"]).split()
    assert {f"linverify.{kind}" for kind in ("json", "sarif", "html")} <= set(kept)
    assert all((tmp_path / name).exists() for name in kept)
    assert "::error file=" in output


def test_the_action_takes_text_for_text(tmp_path: Path) -> None:
    code, output, handed = ran(tmp_path, targets="$(touch made).py", op="gla; touch made", profile="quick")
    assert (code, handed) == (2, "exit-code=2\n")
    assert "no such file: $(touch made).py" in output or "unknown operator" in output
    assert not (tmp_path / "made").exists()


def test_every_input_reaches_the_script_and_no_script_holds_an_input() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    used = {v for s in ACTION["runs"]["steps"] for v in [*s.get("env", {}).values(), *s.get("with", {}).values()]}
    for name in ACTION["inputs"]:
        assert any(f"inputs.{name} " in str(value) for value in used), name


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "workflows").glob("*.yml")), ids=lambda p: p.name)
def test_the_example_workflows_say_what_the_action_and_the_command_understand(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert {"name", True, "permissions", "jobs"} <= set(workflow)  # YAML reads the key "on" as true
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        for step in job["steps"]:
            if str(step.get("uses", "")).startswith("OWNER/"):
                assert set(step["with"]) <= set(ACTION["inputs"])
                assert "targets" in step["with"]


@pytest.mark.parametrize(
    ("schema", "path", "right", "wrong"),
    [
        ("vendor.github-actions", "action.yml", "using: composite", "using: composed"),
        *(
            ("vendor.github-workflows", path.relative_to(ROOT).as_posix(), "runs-on:", "run-on:")
            for folder in (ROOT / ".github" / "workflows", ROOT / "examples" / "workflows")
            for path in sorted(folder.glob("*.yml"))
        ),
    ],
    ids=lambda value: value if "yml" in value else "",
)
def test_actions_and_workflows_obey_github_s_schema(
    schema: str, path: str, right: str, wrong: str, tmp_path: Path
) -> None:
    """As check-jsonschema carries the schemas, so that no network is asked; a misspelt key is seen."""
    text = (ROOT / path).read_text()
    assert right in text
    (tmp_path / "right.yml").write_text(text)
    (tmp_path / "wrong.yml").write_text(text.replace(right, wrong))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    for name, code in (("right.yml", 0), ("wrong.yml", 1)):
        done = subprocess.run(
            [*command, str(tmp_path / name)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr


def test_the_hook_s_manifest_is_what_pre_commit_takes(tmp_path: Path) -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (tmp_path / "right.yaml").write_text(text)
    (tmp_path / "wrong.yaml").write_text(text.replace("language:", "tongue:"))
    for name, code in (("right.yaml", 0), ("wrong.yaml", 1)):
        command = [sys.executable, "-m", "pre_commit", "validate-manifest", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr


def test_the_hook_names_a_module_that_is_there_and_options_that_check_has() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {"id", "name", "entry", "language"} <= set(hook)
    python, dash_m, module, *words = hook["entry"].split()
    assert (python, dash_m, module) == ("python", "-m", pre_commit.__name__)
    assert {w.removeprefix("--") for w in words if w.startswith("--")} <= set(config.known(cli.check))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KERNEL, True),
        ("from linverify import kernel\n@kernel('gla')\ndef f(q): ...\n", True),
        ("from linverify import kernel as k\n@k('gla')\ndef f(q): ...\n", True),
        ("import linverify as lv\nif True:\n    @lv.kernel('gla')\n    def f(q): ...\n", True),
        ("import linverify\ndef f(q): ...\n", False),
        ("# linverify\nfrom other import kernel\n@kernel('gla')\ndef f(q): ...\n", False),
        ("import other as linverify_\n@other.kernel('gla')\ndef f(q): ...\n", False),
        ("def f(:", False),
        ("import linverify\ndef f(:", True),
    ],
)
def test_a_file_with_a_kernel_is_known_by_its_decorator(text: str, expected: bool) -> None:
    assert pre_commit.holds_a_kernel(text) is expected


def test_the_hook_checks_kernels_and_lets_other_files_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text(KERNEL.format(NOTHING))
    (tmp_path / "broken.py").write_text("import linverify\ndef f(:\n")
    assert pre_commit.main(["--profile", "quick", "plain.py"]) == 0
    assert capsys.readouterr().out == ""
    assert (
        pre_commit.main(["--profile", "quick", "--property", "agreement", "--dtype", "fp32", "plain.py", "wrong.py"])
        == 1
    )
    assert "VIOLATION  wrong.py::f" in capsys.readouterr().out
    assert pre_commit.main(["--profile", "quick", "broken.py"]) == 2
    assert "syntax error" in capsys.readouterr().err
