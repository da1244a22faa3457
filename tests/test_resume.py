"""An interrupted run leaves a whole record, whenever it is interrupted, and a resumed one asks the rest."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from linverify.cli import main
from linverify.reports import json_file

KERNELS = Path(__file__).with_name("session_kernels.py")
LAWS = ("agreement", "contract", "gradients", "repeated_call", "linearity")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "kernels.py"
    file.write_text(KERNELS.read_text())
    return f"{file}::good"


def words(kernel: str, *more: str, laws: tuple[str, ...] = LAWS) -> list[str]:
    asked = [w for law in laws for w in ("--property", law)]
    return ["check", kernel, "--op", "gla", "--profile", "quick", "--dtype", "fp32", *asked, *more]


def record(path: Path) -> dict:
    content = json.loads(path.read_text())
    json_file.from_json(content)  # which raises where it is no whole record
    return content


def statuses(content: dict) -> dict[str, str]:
    return {p["name"]: p["status"] for r in content["results"] for p in r["properties"]}


@pytest.mark.parametrize("moment", ["start", "early", "middle", "late"])
def test_ctrl_c_leaves_a_whole_record(kernel: str, moment: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    program = "import sys; from linverify.cli import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *words(kernel, "--json", str(cut))]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    time.sleep({"start": 0.0, "early": 1.0, "middle": 3.0, "late": 5.0}[moment] + random.random() * 0.2)
    for _ in range(1 if moment == "start" else 3):  # an impatient user
        try:
            os.killpg(run.pid, signal.SIGINT)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    _, errors = run.communicate(timeout=60)
    assert run.returncode in (0, 130), errors.decode()
    assert b"Traceback" not in errors
    judged = statuses(record(cut)) if cut.exists() else {}
    assert cut.exists() or moment == "start"  # before the first target there is nothing to record
    if run.returncode == 0:
        assert set(judged) == set(LAWS)
    elif cut.exists():
        assert main(words(kernel, "--json", str(whole), "--resume", str(cut))) == 0
        assert set(statuses(record(whole))) == set(LAWS)


def test_what_was_judged_is_taken_over(kernel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert main(words(kernel, "--json", str(first), laws=LAWS[:2])) == 0
    content = record(first)
    content["results"][0]["properties"][0]["worst_budget_fraction"] = (
        0.123  # the mark of a result that was not asked again
    )
    content["results"][0]["properties"][1]["status"] = "unchecked"
    first.write_text(json.dumps(content))
    assert main(words(kernel, "--json", str(second), "--resume", str(first))) == 0
    found = {p["name"]: p for p in record(second)["results"][0]["properties"]}
    assert found["agreement"]["worst_budget_fraction"] == 0.123
    assert found["contract"]["status"] == "pass"
    assert set(found) == set(LAWS)
    assert any("1 of 5 properties were judged by the run" in n for n in record(second)["results"][0]["notes"])


def test_a_violation_that_was_found_stays_one(kernel: str, tmp_path: Path) -> None:
    bad, cut, rest = kernel.replace("good", "ragged"), tmp_path / "cut.json", tmp_path / "rest.json"
    assert main(words(bad, "--json", str(cut), laws=("agreement",))) == 1
    assert main(words(bad, "--json", str(rest), "--resume", str(cut), laws=("agreement", "contract"))) == 1
    assert statuses(record(rest)) == {"agreement": "violation", "contract": "pass"}
    assert record(rest)["results"][0]["properties"][0] == record(cut)["results"][0]["properties"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "3"], "had other options"),
        (["--dtype", "bf16"], "had other options"),
        (["--claims", "deterministic"], "had other options"),
        ("kernel", "had another kernels.py"),
        ("version", "made by linverify 0.0"),
        ("rubbish", "not a record"),
        ("absent", "No such file"),
    ],
)
def test_what_cannot_be_resumed(
    kernel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str] | str, message: str
) -> None:
    before = tmp_path / "before.json"
    assert main(words(kernel, "--json", str(before), laws=("contract",))) == 0
    if change == "kernel":
        Path(kernel.partition("::")[0]).write_text(KERNELS.read_text() + "\n# edited\n")
    if change == "version":
        before.write_text(json.dumps({**record(before), "linverify_version": "0.0"}))
    if change == "rubbish":
        before.write_text('{"schema_version": 1}')
    if change == "absent":
        before.unlink()
    capsys.readouterr()
    more = change if isinstance(change, list) else []
    assert main(words(kernel, "--resume", str(before), *more, laws=("contract",))) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
