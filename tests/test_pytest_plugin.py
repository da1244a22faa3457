"""The plugin in a user's project, which changes no conftest: markers, xdist, --lf, -x, -k, pytest-timeout, Hypothesis."""

import importlib.metadata
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import linverify
from linverify import gpus, options, pytest_items, pytest_plugin
from linverify.errors import UsageError
from linverify.plan import Plan
from tests.kernel_text import RIGHT

INSTALLED = any(e.name == "linverify" for e in importlib.metadata.entry_points(group="pytest11"))
KERNELS = f"""
import time
import torch

{RIGHT}
def wrong(q, k, v, g, scale=None):
    return right(q, k, v, g, scale) * (1 if q.shape[1] < 3 else 2)

def sleeps(q, k, v, g):
    time.sleep(600)
"""
CASE = "gla/B1.T3.H1.K4.V6/fp32"
TESTS = f"""
import pytest
import linverify
from my_kernels import right, wrong

test_right = linverify.conformance(right, op="gla", dtypes=("fp32",), cases={{"agreement": ["{CASE}"]}})
test_wrong = linverify.conformance(wrong, op="gla", dtypes=("fp32",))
test_other = pytest.mark.linverify(require=("bitwise_repeatable",))(
    linverify.conformance(right, op="gla", dtypes=("fp32",))
)

def test_nothing_of_ours():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's folder with kernels and tests, and nothing of ours in it."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), str(Path(linverify.__path__[0]).parent)]))
    pytester.makepyfile(my_kernels=KERNELS, test_kernels=TESTS)
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    plugin = () if INSTALLED else ("-p", "linverify.pytest_plugin")
    return project.runpytest_subprocess(*plugin, *arguments, timeout=300)


def facts(project: pytest.Pytester, *arguments: str) -> dict[str, dict[str, str]]:
    """User properties of every item, from JUnit XML."""
    run(project, *arguments, "--junitxml=report.xml")
    tree = ET.parse(project.path / "report.xml")
    return {
        str(case.get("name")): {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}
        for case in tree.iter("testcase")
    }


def test_items_are_found_by_marker_law_and_case(project: pytest.Pytester) -> None:
    found = run(project, "--collect-only", "-q", "-m", "linverify").stdout.str()
    assert f"test_kernels.py::test_right[agreement-{CASE}]" in found
    assert "test_kernels.py::test_wrong[state_passing]" in found
    assert "test_nothing_of_ours" not in found
    assert (
        f"test_right[agreement-{CASE}]" in run(project, "--collect-only", "-q", "-k", f"agreement-{CASE}").stdout.str()
    )


def test_a_kept_case_is_an_item_and_a_failure_says_how_to_keep_one(project: pytest.Pytester) -> None:
    kept = run(project, f"test_kernels.py::test_right[agreement-{CASE}]")
    kept.assert_outcomes(passed=1)
    failed = run(project, "test_kernels.py::test_wrong[agreement]")
    failed.assert_outcomes(failed=1)
    keep = re.search(
        r'^keep +linverify.conformance\(..., cases=\{"agreement": \["(.*)"\]\}\)$', failed.stdout.str(), re.MULTILINE
    )
    assert keep is not None, failed.stdout.str()
    assert ".T3." in keep[1]
    text = TESTS.replace(
        '"gla", dtypes=("fp32",))\ntest_other', f'"gla", cases={{"agreement": ["{keep[1]}"]}})\ntest_other'
    )
    assert text != TESTS
    project.makepyfile(test_kernels=text)
    run(project, f"test_kernels.py::test_wrong[agreement-{keep[1]}]").assert_outcomes(failed=1)


def test_last_failed_and_exit_first(project: pytest.Pytester) -> None:
    laws = ("-k", "(test_right or test_wrong) and (agreement or contract)")
    run(project, *laws).assert_outcomes(passed=4, failed=1)
    run(project, *laws, "--lf").assert_outcomes(failed=1, deselected=0)
    first = run(project, "-k", "test_wrong and (agreement or contract)", "-x")
    first.assert_outcomes(failed=1)
    assert "stopping after 1 failures" in first.stdout.str()


def test_the_marker_and_the_record_of_an_item(project: pytest.Pytester) -> None:
    found = facts(project, "-k", "bitwise_repeatable or (test_wrong and agreement)")
    assert found["test_other[bitwise_repeatable]"]["linverify_status"] == "pass"
    assert int(found["test_other[bitwise_repeatable]"]["linverify_cases"]) > 0
    assert found["test_wrong[agreement]"]["linverify_status"] == "violation"
    assert found["test_wrong[agreement]"]["linverify_case_id"].startswith("gla/B")
    assert float(found["test_wrong[agreement]"]["linverify_worst_budget_fraction"]) > 1


def test_a_wrong_marker_or_table_is_a_failure_of_a_line(project: pytest.Pytester) -> None:
    project.makepyfile(test_kernels=TESTS.replace("require=(", "requires=("))
    result = run(project, "-k", "test_other and agreement")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.linverify: expected profile=, device=, require=; got requires"])
    project.makepyprojecttoml("[tool.linverify]\nprofle = 'quick'\nseed = 'x'\n")
    (project.path / "tox.ini").unlink()
    result = run(project, "-k", "test_right and contract")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*profle: unknown key 'profle'; did you mean 'profile'?", "*seed: expected a whole number*"]
    )


def test_a_time_limit_of_pytest_ends_an_item_and_the_next_one_runs(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_kernels="import linverify\nfrom my_kernels import right, sleeps\n"
        'test_sleeps = linverify.conformance(sleeps, op="gla", dtypes=("fp32",))\n'
        'test_right = linverify.conformance(right, op="gla", dtypes=("fp32",))\n'
    )
    result = run(project, "-k", "contract", "--timeout", "15")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*Timeout*"])


def test_a_hypothesis_profile_of_the_user_changes_no_case(project: pytest.Pytester) -> None:
    plain = facts(project, "-k", "test_right and causality_values")
    project.makeconftest(
        "import hypothesis\n"
        "hypothesis.settings.register_profile('odd', max_examples=1, derandomize=True, phases=(), stateful_step_count=1)\n"
    )
    odd = facts(
        project, "-k", "test_right and causality_values", "--hypothesis-profile", "odd", "--hypothesis-seed", "7"
    )
    assert odd == plain
    assert int(plain["test_right[causality_values]"]["linverify_cases"]) > 1


SHOW = """
import pathlib, pytest
from linverify.pytest_plugin import worker_device

@pytest.mark.parametrize("n", range(12))
def test_where(request, n):
    with pathlib.Path(request.config.rootpath, "seen").open("a") as seen:
        seen.write(f"{request.config.workerinput['workerid']} {worker_device(request.config)}\\n")
"""


def with_gpus(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Put a stand-in for nvidia-smi on the search path."""
    rows = "\n".join(f"echo '{i}, GPU-{i}, {mib}'" for i, mib in enumerate(free))
    script = project.path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{rows}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    project.makepyfile(test_kernels=SHOW)


def seen(project: pytest.Pytester) -> dict[str, str]:
    return dict(line.split() for line in (project.path / "seen").read_text().splitlines())


def test_workers_spread_over_the_gpus(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(project, monkeypatch, 20000, 5000)
    result = run(project, "-n", "3", "--dist", "each", "--linverify-device", "cuda")
    assert seen(project) == {"gw0": "cuda:0", "gw1": "cuda:1", "gw2": "cuda:0"}
    result.stdout.fnmatch_lines(["linverify: 2 GPUs, one for each worker in turn"])


def test_n_auto_asks_what_fits_and_only_where_kernels_are_checked(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(project, monkeypatch, 2 * gpus.GPU_MIB_A_WORKER)
    monkeypatch.setattr(gpus, "free_host_mib", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for arguments, expected in (
        ((), None),
        (("--linverify-profile", "quick"), 2),
        (("--linverify-device", "cuda"), 2),
        (("--linverify-device", "cpu"), 64),
    ):
        plugin = () if INSTALLED else ("-p", "linverify.pytest_plugin")
        config = project.parseconfig(*plugin, *arguments)
        assert pytest_plugin.pytest_xdist_auto_num_workers(config) == expected
    (project.path / "tox.ini").unlink()
    project.makepyprojecttoml("[tool.linverify]\nprofile = 'quick'\n[tool.pytest.ini_options]\n")
    assert pytest_plugin.pytest_xdist_auto_num_workers(project.parseconfig()) == 2


class Request:
    """As much of pytest's request as an item reads."""

    def __init__(self, config: object) -> None:
        self.config, self.node = config, self

    def iter_markers(self, _: str) -> list[pytest.Mark]:
        return []


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (None, None, "cuda:1"),
        (None, "cuda", "cuda:1"),
        ("cuda", None, "cuda:1"),
        ("cuda:0", None, "cuda:0"),
        ("cpu", "cuda", "cpu"),
        (None, "cpu", "cpu"),
    ],
)
def test_cuda_means_the_worker_s_own_gpu(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, text: str | None, given: str | None, expected: str
) -> None:
    monkeypatch.setattr(options, "device_option", lambda text: text)
    plugin = () if INSTALLED else ("-p", "linverify.pytest_plugin")
    config = project.parseconfig(*plugin, *(("--linverify-device", text) if text else ()))
    config.workerinput = {"workerid": "gw1", pytest_plugin.WORKER_DEVICE: "cuda:1"}  # type: ignore[attr-defined]
    asked = pytest_items._asked(Request(config), Plan("t"), set(), profile=None, device=given)  # type: ignore[arg-type]
    assert asked.device == expected


def test_the_project_s_table_fills_in_what_a_test_leaves_out(project: pytest.Pytester) -> None:
    (project.path / "tox.ini").unlink()
    project.makepyprojecttoml(
        "[tool.linverify]\nprofile = 'standard'\nseed = 4\ndevice = 'cpu'\ndtype = 'bf16'\nclaims = { fp32 = 'ieee' }\n"
        "[tool.pytest.ini_options]\n"
    )
    plugin = () if INSTALLED else ("-p", "linverify.pytest_plugin")
    request = Request(project.parseconfig(*plugin, "--linverify-profile", "quick"))
    asked = pytest_items._asked(request, Plan("t", dtypes=()), {"seed"}, profile="thorough", device=None)  # type: ignore[arg-type]
    assert (asked.profile, asked.seed, asked.dtypes, asked.device) == ("quick", 4, ("bf16",), "cpu")
    assert asked.claims == {"fp32": "ieee"}
    said = pytest_items._asked(request, Plan("t", dtypes=("fp16",), seed=1), set(), profile=None, device=None)  # type: ignore[arg-type]
    assert (said.dtypes, said.seed) == (("fp16",), 1)


def test_a_law_or_case_that_is_none_is_told_at_collection() -> None:
    with pytest.raises(UsageError, match="did you mean 'agreement'"):
        linverify.conformance("k.py::f", op="gla", cases={"agrement": [CASE]})
