"""Conformance in a user's test file: run by pytest in a process of its own, with two workers."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import linverify
from linverify.errors import UsageError
from linverify.pytest_items import conformance, target_of
from linverify.pytest_outcomes import BASIS, settle
from linverify.verdict import PropertyResult, Refusal, Status, TargetResult
from tests.kernel_text import RIGHT

KERNELS = f"""
import torch
import linverify

@linverify.kernel("gla")
{RIGHT}
def wrong(q, k, v, g, scale=None):
    return right(q, k, v, g, scale) * 2

def refuses(q, k, v, g):
    raise NotImplementedError("nothing yet")
"""
TESTS = """
from pathlib import Path
import linverify
from my_kernels import right, wrong

test_right = linverify.conformance(right, dtypes=("fp32",))
test_wrong = linverify.conformance(wrong, op="gla", dtypes=("fp32",), device="cpu")
test_refuses = linverify.conformance(str(Path(__file__).with_name("my_kernels.py")) + "::refuses", op="gla", dtypes=("fp32",))
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    installed = [e for e in importlib.metadata.entry_points(group="pytest11") if e.name == "linverify"]
    plugin = [] if installed else ["-p", "linverify.pytest_plugin"]
    path = [str(folder), str(Path(linverify.__path__[0]).parent)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *plugin, *arguments, "test_kernels.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def outcomes(text: str) -> dict[str, str]:
    """Node ids (without the file) to outcomes, from the summary of -rA; of skips the reasons."""
    found = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED") and "::" in rest:
            found[rest.split("::")[1].split(" - ")[0]] = word
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One run of a few laws on three kernels, by two workers."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_kernels.py").write_text(KERNELS)
    (folder / "test_kernels.py").write_text(TESTS)
    laws = "agreement or contract or state_passing or bitwise_repeatable or delta_gauge"
    return run_pytest(folder, "-n", "2", "-k", laws, "--linverify-profile", "quick", "--linverify-device", "cpu")


def test_every_law_is_an_item_of_its_own_with_its_own_outcome(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert outcomes(ran.stdout) == {
        "test_right[agreement]": "PASSED",
        "test_right[contract]": "PASSED",
        "test_right[bitwise_repeatable]": "PASSED",
        "test_wrong[agreement]": "FAILED",
        "test_wrong[contract]": "PASSED",
        "test_wrong[bitwise_repeatable]": "PASSED",
        "test_refuses[agreement]": "FAILED",
    }


def test_a_failure_reads_like_the_console_and_ends_in_a_command(ran: subprocess.CompletedProcess[str]) -> None:
    for text in (
        "VIOLATION  agreement",
        "how many ",
        "how far ",
        "where ",
        "allowed ",
        "linverify replay gla/B1.T1.H1.",
        "diagnosis ",
        "--op gla --property agreement --device cpu",
        "agreement could not be checked: the target refused all",
        "NotImplementedError: nothing yet (smallest case gla/B1.T1.",
    ):
        assert text in ran.stdout, text
    for text in ("Traceback", "linverify/session.py", "linverify/conformance.py:", "def test("):
        assert text not in ran.stdout, text


def test_a_skip_says_why(ran: subprocess.CompletedProcess[str]) -> None:
    skips = [line for line in ran.stdout.splitlines() if line.startswith("SKIPPED")]
    assert any("not offered: the function takes no" in line for line in skips), skips
    assert any("not applicable: says nothing about gla" in line for line in skips), skips
    assert any("refused: the target refused all" in line and "nothing yet" in line for line in skips), skips


def test_a_function_is_found_by_file_or_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_kernels").mkdir()
    (tmp_path / "package_of_kernels" / "inner.py").write_text("def f(q): ...\n")
    (tmp_path / "module_of_kernels.py").write_text("def f(q): ...\n")
    inner = importlib.import_module("package_of_kernels.inner")
    alone = importlib.import_module("module_of_kernels")
    assert target_of(inner.f) == "package_of_kernels.inner:f"
    assert target_of(alone.f) == f"{tmp_path / 'module_of_kernels.py'}::f"
    monkeypatch.setattr(sys, "path", [])
    assert target_of(inner.f) == f"{tmp_path / 'package_of_kernels' / 'inner.py'}::f"


def test_the_entry_point_is_the_function_however_often_it_is_asked_for() -> None:
    assert linverify.conformance is conformance
    assert linverify.conformance is conformance


@pytest.mark.parametrize("function", [lambda q: q, object(), types.FunctionType((lambda q: q).__code__, {}, "f")])
def test_a_function_that_no_other_process_can_find_is_turned_down_at_once(function: object) -> None:
    with pytest.raises(UsageError, match=r"module-level|wrap it|has no file"):
        target_of(function)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"op": "gal"},
        {"op": "gla", "dtypes": ("fp8",)},
        {"op": "gla", "profile": "quik"},
        {"op": "gla:x"},
        {"op": "gla", "require": ("bitwise",)},
        {"op": "gla", "cases": {"agrement": []}},
        {"op": "gla", "cases": {"agreement": ["gla/B1"]}},
    ],
)
def test_arguments_are_checked_when_the_file_is_collected(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        conformance("kernels.py::f", **wrong)  # type: ignore[arg-type]


def settled(status: Status, *, required: bool, name: str = "packed", refusals: tuple[Refusal, ...] = ()) -> str:
    """Return pytest's outcome for one record."""
    found = PropertyResult(name, status, required, note="because")
    result = TargetResult("t", "gla", "", "", "pass", properties=(found,), refusals=refusals)
    try:
        settle(result, found, "")
    except pytest.skip.Exception:
        return "skipped"
    except pytest.fail.Exception as failure:
        return "failed" if not failure.pytrace else "failed with a traceback"
    return "passed"


@pytest.mark.parametrize(
    ("status", "required", "outcome"),
    [
        (Status.PASS, True, "passed"),
        (Status.MARGINAL, True, "passed"),
        (Status.VIOLATION, True, "failed"),
        (Status.REPORTED, False, "skipped"),
        (Status.UNCHECKED, True, "failed"),
        (Status.UNCHECKED, False, "skipped"),
        (Status.NOT_OFFERED, True, "skipped"),
        (Status.NOT_APPLICABLE, True, "skipped"),
        (Status.REFUSED, True, "skipped"),
    ],
)
def test_every_status_has_its_outcome(status: Status, required: bool, outcome: str) -> None:
    assert settled(status, required=required) == outcome


def test_a_kernel_that_refuses_everything_fails() -> None:
    refusal = Refusal("ValueError", "no", "gla/B1.T1.H1.K1.V1/fp32", 3)
    assert settled(Status.REFUSED, required=True, name=BASIS, refusals=(refusal,)) == "failed"
