"""The command line: exit codes, one-line errors, and the record, first with a session of our own, then with the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from linverify import checking, cli, registry, session
from linverify.errors import CannotCheckError, UsageError
from linverify.exits import EXIT_CODES
from linverify.options import device_option
from linverify.plan import Listener, Plan
from linverify.reports import json_file
from linverify.verdict import PropertyResult, Status, TargetResult

KERNEL = """
import os, time, torch

def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    S = torch.zeros(*q.shape[::2], q.shape[-1], v.shape[-1]) if initial_state is None else initial_state.float()
    out = []
    for t in range(q.shape[1]):
        S = S * g[:, t, :, :, None].float().exp() + k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        out.append((q[:, t, :, :, None].float() * scale * S).sum(-2))
    o = torch.stack(out, 1).to(v.dtype)
    return (o, S) if output_final_state else (o, None)

def wrong(q, k, v, g, scale=None):
    return 2 * gla(q, k, v, g, scale)[0]

def crashes(q, k, v, g):
    os.abort()

def refuses(q, k, v, g):
    assert q.shape[1] < 1, "no tokens wanted"

def slow(q, k, v, g):
    time.sleep(0.5)
    return gla(q, k, v, g)[0]
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a file of kernels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels.py").write_text(KERNEL)
    return tmp_path


Session = Callable[[Plan, Listener], Sequence[TargetResult]]


def with_session(monkeypatch: pytest.MonkeyPatch, check: Session) -> list[Plan]:
    """Put `check` in the session's place; return the list that collects its plans."""
    plans: list[Plan] = []

    def recorded(plan: Plan, listener: Listener, _: session.Shared) -> Sequence[TargetResult]:
        plans.append(plan)
        return check(plan, listener)

    monkeypatch.setattr(session, "check", recorded)
    return plans


def verdict(plan: Plan, kind: str) -> tuple[TargetResult, ...]:
    status = {"pass": Status.PASS, "violation": Status.VIOLATION, "unchecked": Status.UNCHECKED}[kind]
    found = PropertyResult("agreement", status, True, 1, 0, 0.1, 0.5)
    return (TargetResult(plan.target, plan.operator or "gla", "", "", kind, properties=(found,), cases=1),)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["pass"], 0),
        (["violation"], 1),
        (["unchecked"], 3),
        (["pass", "unchecked"], 3),
        (["unchecked", "violation", "pass"], 1),
    ],
)
def test_the_verdicts_decide_the_exit_code(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    left = list(kinds)
    with_session(monkeypatch, lambda plan, _: verdict(plan, left.pop(0)))
    assert cli.main(["check", *["kernels.py::gla"] * len(kinds), "--op", "gla", "--json", "run.json"]) == code
    printed = capsys.readouterr()
    assert [line.split()[0].lower() for line in printed.out.splitlines() if "kernels.py::gla  gla" in line] == kinds
    assert printed.err == ""
    record = json.loads((kernels / "run.json").read_text())
    assert [r["verdict"] for r in record["results"]] == kinds
    assert record["environment"]["torch"]
    assert json_file.from_json(record).exit_code == code


def test_options_reach_the_plan(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = with_session(monkeypatch, lambda plan, _: verdict(plan, "pass"))
    arguments = (
        "check kernels.py::gla --op gated_linear_attention:a=1,b=x --set n=[1,2] --set name=fast --claims gva"
        " --claims fp32=ieee --device cpu --dtype float32 --dtype bf16 --dtype fp32 --property causality-values"
        " --require bitwise_repeatable --profile quick --time 1.5 --seed 7 --autotune native"
    )
    assert cli.main(arguments.split()) == 0
    assert plans == [
        Plan(
            target="kernels.py::gla",
            operator="gla",
            operator_parameters={"a": "1", "b": "x"},
            settings={"n": [1, 2], "name": "fast"},
            claims={"gva": "true", "fp32": "ieee"},
            device="cpu",
            dtypes=("fp32", "bf16"),
            properties=("causality_values",),
            require=("bitwise_repeatable",),
            profile="quick",
            time=1.5,
            seed=7,
            autotune="native",
            reproducers=Path(".linverify"),
        )
    ]


def test_defaults_are_those_of_the_contract(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = with_session(monkeypatch, lambda plan, _: verdict(plan, "pass"))
    cli.main(["check", "kernels.py"])
    assert plans[0] == Plan("kernels.py", device=device_option(None), reproducers=Path(".linverify"))
    assert (plans[0].dtypes, plans[0].profile) == (("fp32", "bf16", "fp16"), "standard")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("check", "Missing argument"),
        ("", "Missing command"),
        ("chekc kernels.py", "No such command"),
        ("check missing.py --op gla", "no such file: missing.py"),
        ("check broken.py --op gla", "broken.py, line 1: syntax error"),
        ("check kernels.py::gla --op gal", "unknown operator 'gal'; did you mean 'gla'?"),
        ("check kernels.py::gla --op gla:", "expected OP or OP:key=value"),
        ("check kernels.py::gla --op gla --pdf x.pdf", "No such option: --pdf"),
        ("check kernels.py::gla --op gla --dtype fp8", "unknown dtype 'fp8'"),
        ("check kernels.py::gla --op gla --property agreemint", "did you mean 'agreement'?"),
        ("check kernels.py::gla --op gla --require bitwise", "unknown property 'bitwise'"),
        ("check kernels.py::gla --op gla --profile quik", "did you mean 'quick'?"),
        ("check kernels.py::gla --op gla --autotune some", "unknown autotune mode 'some'"),
        ("check kernels.py::gla --op gla --time 0", "expected a positive number of seconds"),
        ("check kernels.py::gla --op gla --time soon", "Invalid value for '--time'"),
        ("check kernels.py::gla --op gla --device tpu", "expected cpu, cuda or cuda:0"),
        ("check kernels.py::gla --op gla --set n", "expected NAME=VALUE"),
        ("check kernels.py::gla --op gla --claims determinstic=true", "did you mean 'deterministic'?"),
        ("check kernels.py::gla --op gla --claims fp32=iee", "claim fp32=iee: expected fp32=ieee"),
        ("replay gla/B1.T0.H1.K1.V1/fp32 --target kernels.py::gla", "sizes must be at least 1"),
        ("check kernels.py::gla --op gla --set n=1 --set n=2", "n is given twice"),
        ("check kernels.py::gla --op gla --json no/such/run.json", "no such folder: no/such"),
        ("check kernels.py::gla --op gla --json .", "expected a file, this is a folder"),
        ("replay nonsense --target kernels.py::gla", "not a case id: 'nonsense'"),
        ("replay gla/B1.T1.H1.K1.V1/fp32", "expected --target"),
        ("replay kernels.py", "kernels.py is no reproducer"),
        ("replay missing.py", "cannot read missing.py: No such file"),
        ("list operatrs", "did you mean 'operators'?"),
        ("explain agreemint", "did you mean 'agreement'?"),
        ("explain xyzzyx", "'linverify list' shows what there is"),
    ],
)
def test_a_request_that_cannot_be_understood_is_one_line_and_exit_code_2(
    kernels: Path, arguments: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (kernels / "broken.py").write_text("def f(:\n")
    assert cli.main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_help_says_of_every_command_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:")[2].partition("Exit codes")[0]
    lines = [line for line in commands.splitlines() if line.strip()]
    assert len(lines) == 10
    assert all(line.endswith((".", "?")) and not line.endswith("...") for line in lines), lines  # none is cut short


def test_a_device_that_is_not_there_is_exit_code_3(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "kernels.py::gla", "--op", "gla", "--device", "cuda:99"]) == 3
    assert "no such device: cuda:99" in capsys.readouterr().err


def test_a_target_that_cannot_be_checked_does_not_stop_the_others(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(plan: Plan, _: Listener) -> Sequence[TargetResult]:
        if plan.target == "kernels.py":
            raise CannotCheckError("importing kernels.py raised ImportError: no such thing")
        return verdict(plan, "violation")

    with_session(monkeypatch, check)
    assert cli.main(["check", "kernels.py", "kernels.py::gla", "--json", "run.json"]) == 1
    assert "importing kernels.py raised ImportError" in capsys.readouterr().out
    results = json.loads((kernels / "run.json").read_text())["results"]
    assert [(r["target"], r["verdict"]) for r in results] == [
        ("kernels.py", "unchecked"),
        ("kernels.py::gla", "violation"),
    ]


def test_a_late_usage_error_keeps_what_was_judged(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(plan: Plan, _: Listener) -> Sequence[TargetResult]:
        if plan.target.endswith("glu"):
            raise UsageError("kernels.py has no function 'glu'")
        return verdict(plan, "pass")

    with_session(monkeypatch, check)
    assert cli.main(["check", "kernels.py::gla", "kernels.py::glu", "--op", "gla", "--json", "run.json"]) == 2
    printed = capsys.readouterr()
    assert "PASS  kernels.py::gla" in printed.out
    assert printed.err == "linverify: kernels.py has no function 'glu'\n"
    assert len(json.loads((kernels / "run.json").read_text())["results"]) == 1


@pytest.mark.parametrize("status", [Status.PASS, Status.VIOLATION])
def test_an_interrupt_finishes_with_what_was_judged(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, status: Status, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        listener.target_started(plan.target, "gla", ["agreement", "gradients"])
        listener.case_judged("agreement", "gla/B1.T1.H1.K1.V1/fp32", 0.5)
        listener.property_finished(PropertyResult("agreement", status, True, 1, 0, 0.1, 0.5))
        listener.property_started("gradients")
        raise KeyboardInterrupt

    plans = with_session(monkeypatch, check)
    assert cli.main(["check", "kernels.py::gla", "kernels.py::wrong", "--op", "gla", "--json", "run.json"]) == 130
    assert len(plans) == 1
    record = json_file.from_json(json.loads((kernels / "run.json").read_text()))
    (result,) = record.results
    assert result.verdict == ("violation" if status is Status.VIOLATION else "unchecked")
    assert [p.name for p in result.properties] == ["agreement"]
    assert result.cases == 1
    assert "interrupted" in capsys.readouterr().out


def test_an_error_of_ours_is_one_line_and_a_file(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        raise KeyError("lost\nand more")

    monkeypatch.setattr(checking.tempfile, "tempdir", str(kernels))
    with_session(monkeypatch, check)
    assert cli.main(["check", "kernels.py::gla", "--op", "gla"]) == 3
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "a bug of linverify" in printed.out
    (written,) = kernels.glob("linverify-bug-*.txt")
    assert str(written) in "".join(printed.out.split("\n")).replace(" ", "") or written.name in printed.out
    assert "KeyError" in written.read_text()

    monkeypatch.setattr(registry, "operator", check)
    assert cli.main(["check", "kernels.py::gla", "--op", "gla"]) == 3
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "a bug of linverify" in printed.err


def test_everything_listed_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    names = [*registry.operators(), *registry.properties(), registry.implementations()[0].target_text, "reset", "M16"]
    for name in names:
        assert name in listed
        assert cli.main(["explain", name]) == 0, name
        assert name in capsys.readouterr().out


def test_explain_shows_what_an_operator_says_of_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    for operator in registry.operators().values():
        cli.main(["explain", operator.name])
        shown = capsys.readouterr().out
        for text in (operator.summary, operator.source, *operator.equations.splitlines(), *operator.hazards):
            assert text.strip() in shown
        laws = registry.properties().values()
        assert all((law.law in shown) is law.applies(operator) for law in laws)


def test_doctor_names_what_decides_what_can_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor"])
    shown = capsys.readouterr().out
    assert code in (0, 3)
    for word in ("torch", "triton", "triton on cpu", "judged on cpu: fp32 as fp32, bf16 as bf16, fp16 as fp16"):
        assert word in shown


def test_the_exit_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{code} {meaning}" in shown for code, meaning in EXIT_CODES.items())


QUICK = ["--op", "gla", "--device", "cpu", "--profile", "quick", "--dtype", "fp32", "--property", "agreement"]


@pytest.mark.parametrize(("function", "code"), [("gla", 0), ("wrong", 1), ("crashes", 1), ("refuses", 3)])
def test_real_kernels_end_in_the_right_exit_code(
    kernels: Path, function: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", f"kernels.py::{function}", *QUICK, "--json", "run.json"]) == code
    printed = capsys.readouterr().out
    record = json_file.from_json(json.loads((kernels / "run.json").read_text()))
    (found,) = record.results[0].properties
    assert found.name == "agreement"
    assert record.exit_code == code
    if code != 1:
        return
    assert found.failure is not None
    script = kernels / found.failure.reproducer
    assert script.is_file()
    options = "--op gla --property agreement --device cpu"
    replay = f"linverify replay {found.failure.case_id} --target kernels.py::{function} {options}"
    assert replay in printed
    assert cli.main(replay.split()[1:]) == 1
    assert cli.main(["replay", found.failure.reproducer]) == 1


def test_the_same_seed_asks_the_same_cases(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "linverify.reports.progress.Progress.case_judged", lambda _, name, case, share: asked.append(case)
    )
    for seed in ("1", "1", "2"):
        cli.main(["check", "kernels.py::gla", *QUICK, "--seed", seed])
        asked.append("|")
    first, second, third, _ = " ".join(asked).split("|")
    assert first.split() == second.split()
    assert first.split()
    assert first.split() != third.split()


def test_ctrl_c_ends_a_run_with_its_record(kernels: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "linverify",
        "check",
        "kernels.py::gla",
        "kernels.py::slow",
        *QUICK,
        "--json",
        "run.json",
    ]
    run = subprocess.Popen(
        command,
        cwd=kernels,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background ignores SIGINT, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    while "PASS" not in (line := run.stdout.readline()):
        assert line or run.poll() is None, run.communicate()
    time.sleep(2.0)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, out + err
    assert "Traceback" not in out + err
    record = json_file.from_json(json.loads((kernels / "run.json").read_text()))
    assert [r.verdict for r in record.results] == ["pass", "unchecked"]
    assert record.results[1].reason == "interrupted"
