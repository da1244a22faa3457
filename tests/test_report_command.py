"""``linverify report``: a record in any format, and two records compared."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from linverify import cli
from linverify.reports import json_file
from linverify.reports.changes import Changes, compare
from linverify.reports.changes_table import changes_table, summary
from linverify.reports.console import plain
from linverify.verdict import BudgetUse, Failure, PropertyResult, Report, Status, TargetResult


def run(*properties: PropertyResult, target: str = "k.py::f", operator: str = "gla", o: float = 0.5) -> Report:
    broken = any(p.required and p.status is Status.VIOLATION for p in properties)
    result = TargetResult(
        target,
        operator,
        "",
        "",
        "violation" if broken else "pass",
        properties=properties,
        budget=(BudgetUse("o", "fp32", 3, o, "fp32"),),
        cases=3,
    )
    return Report("0.1.0", {"torch": "2.13.0"}, 0, "quick", (result,))


def found(
    name: str, status: str, failure: Failure | None = None, *, cases: int = 3, required: bool = True
) -> PropertyResult:
    return PropertyResult(name, Status(status), required, cases, 0, 1.0, None, failure)


@pytest.fixture
def changes(numeric_failure: Failure) -> Changes:
    """One change of every kind."""
    before = run(
        found("agreement", "pass"),
        found("causality", "pass"),
        found("linearity", "pass"),
        found("packed", "violation", numeric_failure),
        found("exact", "unchecked", cases=0),
        found("batch_invariance", "pass", required=False),
        found("default_scale", "pass", required=False),
        found("gradients", "violation", numeric_failure),
        o=0.25,
    )
    after = run(
        found("agreement", "violation", numeric_failure),
        dataclasses.replace(found("causality", "unchecked", cases=0), note="time ran out"),
        found("linearity", "marginal"),
        found("packed", "pass"),
        found("exact", "pass"),
        found("batch_invariance", "reported", numeric_failure, required=False),
        found("gradients", "violation", numeric_failure),
        o=1.5,
    )
    return compare(before, dataclasses.replace(after, profile="standard"))


COMPARED_80 = """\
2 regressions, 2 better, 1 broken as before
  k.py::f

broken (not broken before, broken now)
  agreement  pass -> violation
    The last chunk is wrong when T is no multiple of 16: rows beyond T are read
    without a mask. (17 of 561 elements of o, share of the budget 25.0)
    gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3

lost (required and judged before, not judged now)
  pass -> unchecked: causality (time ran out)

marginal (clear of the line before, on it now)
  linearity  pass -> marginal

appeared (reported now, not required)
  batch invariance  pass -> reported
    The last chunk is wrong when T is no multiple of 16: rows beyond T are read
    without a mask. (17 of 561 elements of o, share of the budget 25.0)
    gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3

changed (another status)
  pass -> absent: default scale

fixed (broken before, holds now)
  violation -> pass: packed

gained (not judged before, judged now)
  unchecked -> pass: exact

share of the budget   dtype   before   after   ratio
────────────────────────────────────────────────────
o                     fp32      0.25    1.50    6.00

the runs themselves differ
  profile: quick -> standard
"""


def test_a_comparison_opens_with_the_regressions(changes: Changes) -> None:
    console = plain(80)
    console.print(changes_table(changes))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\n".join(line.rstrip() for line in text.splitlines()) + "\n" == COMPARED_80


def test_nothing_changed_is_said_in_one_line(report: Report) -> None:
    console = plain(80)
    same = compare(report, report)
    console.print(changes_table(same))
    assert console.file.getvalue().strip() == "no regression, 2 broken as before"  # type: ignore[attr-defined]
    assert (same.found, same.drifts, same.circumstances) == ((), (), ())


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (run(found("a", "pass")), run(found("a", "pass")), 0),
        (run(found("a", "violation")), run(found("a", "pass")), 0),
        (run(found("a", "pass")), run(found("a", "violation")), 1),
        (run(found("a", "violation")), run(found("a", "violation")), 1),
        (run(found("a", "pass")), run(found("a", "pass"), target="other.py::f", operator="kda"), 3),
        (run(found("a", "pass"), found("b", "pass")), run(found("a", "pass")), 3),
        (run(found("a", "pass"), found("b", "pass", required=False)), run(found("a", "pass")), 0),
        (run(found("a", "pass")), dataclasses.replace(run(), results=()), 3),
    ],
)
def test_a_comparison_never_passes_where_something_is_no_longer_judged(
    before: Report, after: Report, code: int
) -> None:
    assert compare(before, after).exit_code == code


def test_old_and_new_versions_of_a_kernel_are_paired_by_operator() -> None:
    old, new = run(found("a", "pass"), target="old.py::f"), run(found("a", "violation"), target="new.py::f")
    assert [c.kind for c in compare(old, new).found] == ["broken"]
    two = dataclasses.replace(old, results=(*old.results, dataclasses.replace(old.results[0], target="third.py::f")))
    assert [c.kind for c in compare(two, new).found] == ["broken", "lost", "lost"]  # nobody can tell which became which


def test_new_targets_are_no_regression() -> None:
    both = run(found("a", "pass"))
    more = dataclasses.replace(both, results=(*both.results, *run(found("a", "pass"), operator="kda").results))
    assert summary(compare(both, more)) == "no regression, 1 better"


@pytest.fixture
def recorded(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a record of a violation."""
    monkeypatch.chdir(tmp_path)
    json_file.write(dataclasses.replace(report, replay_options="--device cpu"), tmp_path / "run.json")
    return tmp_path


def test_a_record_is_shown_as_its_run_was(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "run.json"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("VIOLATION  my_gla.py::my_gla  gla · chunkwise · triton\n")
    assert "--property agreement --device cpu\n" in out
    assert "PASS  fla.ops.gla:chunk_gla" in out


def test_every_format_is_made_from_a_record(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(recorded / "summary.md"))
    (recorded / "summary.md").write_text("before\n")
    arguments = ["--html", "run.html", "--junit", "run.xml", "--sarif", "run.sarif", "--github"]
    assert cli.main(["report", "run.json", *arguments]) == 1
    assert "\n::error " in capsys.readouterr().out
    assert (recorded / "run.html").read_text().startswith("<!doctype html>")
    assert (recorded / "run.xml").read_text().startswith("<?xml")
    assert json.loads((recorded / "run.sarif").read_text())["version"] == "2.1.0"
    assert (recorded / "summary.md").read_text().startswith("before\n## linverify\n")


def test_two_records_are_compared_in_every_format(
    recorded: Path, report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(recorded / "summary.md"))
    json_file.write(dataclasses.replace(report, results=report.results[1:]), recorded / "before.json")
    assert cli.main(["report", "before.json", "run.json", "--sarif", "run.sarif", "--html", "r.html", "--github"]) == 1
    assert capsys.readouterr().out.startswith("2 regressions, ")
    states = {r["baselineState"] for r in json.loads((recorded / "run.sarif").read_text())["runs"][0]["results"]}
    assert states == {"new"}
    assert "Since the run before: 2 regressions" in (recorded / "summary.md").read_text()
    assert ">2 regressions" in (recorded / "r.html").read_text()


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["schema_version"] == {"const": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected one FILE.json, or two to compare, got 0"),
        (["run.json"] * 3, "got 3"),
        (["gone.json"], "cannot read gone.json: No such file or directory"),
        (["."], "cannot read .: Is a directory"),
        (["text.json"], "text.json: not JSON"),
        (["list.json"], "list.json: expected a JSON object, got []"),
        (["old.json"], "old.json: expected schema_version 1, got 0"),
        (["run.json", "--junit", "no/such.html"], "--junit no/such.html: no such folder: no"),
        (["run.json", "--junit", "x", "--sarif", "x"], "--sarif x: --junit goes to the same file"),
    ],
)
def test_what_cannot_be_understood_is_one_line(
    recorded: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (recorded / "text.json").write_text("hello")
    (recorded / "list.json").write_text("[]")
    (recorded / "old.json").write_text('{"schema_version": 0}')
    assert cli.main(["report", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_a_reader_who_leaves_early_changes_no_exit_code_and_no_file(recorded: Path) -> None:
    words = [sys.executable, "-m", "linverify", "report", "run.json", "--junit", "run.xml", "--github"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert (recorded / "run.xml").read_text().startswith("<?xml")


# Records of `check` lie in folders, a trial each; beside the pages lie what scripts measured.
PUBLISHED = sorted((Path(__file__).parents[1] / "docs" / "published").glob("*/*.json"))


def test_there_are_published_records() -> None:
    assert len(PUBLISHED) >= 11


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_published_records_can_be_read_in_every_format(path: Path, tmp_path: Path) -> None:
    code = cli.main(
        ["report", str(path), "--html", f"{tmp_path}/h", "--junit", f"{tmp_path}/j", "--sarif", f"{tmp_path}/s"]
    )
    assert code == json_file.read(path).exit_code
    record = json.loads(path.read_text())
    jsonschema.Draft202012Validator(json.loads(json_file.schema())).validate(record)
    for result in record["results"]:
        assert result["target"] in (tmp_path / "h").read_text()
    assert len(json.loads((tmp_path / "s").read_text())["runs"][0]["results"]) == sum(
        p["failure"] is not None for r in record["results"] for p in r["properties"]
    )
