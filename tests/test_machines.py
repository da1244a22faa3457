"""What machines read: JUnit, SARIF, GitHub's commands and the record, each held to its official schema."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from lxml import etree

from linverify import insight, verdict
from linverify.reports import json_file
from linverify.reports.changes import compare
from linverify.reports.github import annotations, job_summary
from linverify.reports.junit import junit
from linverify.reports.sarif import sarif
from linverify.verdict import Evidence, Failure, PropertyResult, Report, Status, TargetResult

SCHEMAS = Path(__file__).parent / "data" / "schemas"
JUNIT = etree.XMLSchema(etree.parse(SCHEMAS / "junit-jenkins-10.xsd"))
SARIF = jsonschema.Draft4Validator(
    json.loads((SCHEMAS / "sarif-2.1.0-rtm.5.json").read_text()), format_checker=jsonschema.FormatChecker()
)
RECORD = jsonschema.Draft202012Validator(json.loads(json_file.schema()))


def with_place(report: Report, file: str = "kernels/my gla.py", line: int = 42) -> Report:
    return dataclasses.replace(
        report, results=tuple(dataclasses.replace(r, file=file, line=line) for r in report.results)
    )


def unchecked(report: Report) -> Report:
    gone = TargetResult("my_gla.py", "", "", "", "unchecked", reason="importing my_gla.py raised ImportError: no x")
    return dataclasses.replace(report, results=(gone,))


@pytest.fixture
def odd(report: Report) -> Report:
    """A run whose texts hold everything that some format cannot: control characters, markup, fences, quotes."""
    text = "\x1b[31m]]> <b>&\"'`|*_ ```\n100 % ::error::,:\x00 done"
    failure = Failure("gla/B1/x=<&>", {"B": 1}, Evidence("crash", message=text), diagnosis=text, log=text)
    found = PropertyResult("agreement", Status.VIOLATION, True, 1, 0, 1.0, None, failure, note=text)
    result = TargetResult(
        "odd|`name`.py::f", "gla", "", "", "violation", properties=(found,), notes=(text,), cases=1, reason=text
    )
    return dataclasses.replace(report, results=(result,), environment={"device <x>": text})


@pytest.fixture(params=["whole", "odd", "unchecked", "nothing"])
def any_report(request: pytest.FixtureRequest, report: Report, odd: Report) -> Report:
    """Runs of every kind."""
    return {
        "whole": with_place(report),
        "odd": odd,
        "unchecked": unchecked(report),
        "nothing": dataclasses.replace(report, results=()),
    }[request.param]


# JUnit


def junit_of(report: Report) -> Any:
    return etree.fromstring(junit(report).encode())


def test_junit_obeys_the_schema_of_jenkins(any_report: Report) -> None:
    JUNIT.assertValid(junit_of(any_report))


def test_junit_has_what_ant_s_schema_requires_and_in_its_order(any_report: Report) -> None:
    """The Windy Road schema in words; its file is under another licence than ours."""
    root = junit_of(any_report)
    assert not root.attrib
    for number, suite in enumerate(root):
        assert [child.tag for child in suite if child.tag != "testcase"] == ["properties", "system-out", "system-err"]
        assert suite[0].tag == "properties"
        required = {"package", "id", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"}
        assert required <= set(suite.attrib) <= required | {"skipped"}
        assert suite.get("id") == str(number)
        assert all(suite.get(name) for name in required)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.get("timestamp"))
        for case in suite.iter("testcase"):
            assert set(case.attrib) == {"name", "classname", "time"}
            assert len(case) <= 1
            assert all(set(outcome.attrib) == {"type", "message"} for outcome in case)


def test_junit_is_red_where_the_exit_code_is(report: Report, passing: TargetResult) -> None:
    for verdicts in (report, unchecked(report), dataclasses.replace(report, results=(passing,))):
        red = sum(int(s.get("failures")) + int(s.get("errors")) for s in junit_of(verdicts))
        assert bool(red) == bool(verdicts.exit_code)


def test_junit_tells_every_status_apart(report: Report) -> None:
    suite = junit_of(report)[0]
    outcomes = {c.get("name"): c[0].tag if len(c) else "passed" for c in suite.iter("testcase")}
    assert outcomes == {
        "agreement": "failure",
        "gradients": "failure",
        "causality": "passed",
        "linearity": "passed",
        "packed": "skipped",
        "state_passing": "error",
        "batch_invariance": "skipped",
        "default_scale": "skipped",
        "reductions": "skipped",
    }
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "9",
        "2",
        "1",
        "4",
    )
    failure = suite.find("testcase/failure")
    assert failure.get("message").startswith("The last chunk is wrong when T is no multiple of 16")
    assert "linverify replay gla/B1.T33" in failure.text


def test_junit_keeps_the_order_and_the_time_of_the_run(report: Report) -> None:
    started = dataclasses.replace(report, started="2026-01-02T03:04:05+00:00")
    assert {s.get("timestamp") for s in junit_of(started)} == {"2026-01-02T03:04:05"}
    assert junit_of(started)[0].get("time") == "83.000"


# SARIF


def sarif_of(report: Report, *before: Report) -> dict[str, Any]:
    log = json.loads(sarif(report, compare(before[0], report) if before else None), parse_constant=pytest.fail)
    assert isinstance(log, dict)
    return log


def test_sarif_obeys_the_schema_of_oasis(any_report: Report) -> None:
    SARIF.validate(sarif_of(any_report))
    SARIF.validate(sarif_of(any_report, any_report))


def test_the_sarif_schema_can_say_no(report: Report) -> None:
    log = sarif_of(report)
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        SARIF.validate(log)


def test_sarif_points_at_the_kernel_s_line(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (place,) = sarif_of(with_place(report))["runs"][0]["results"][0]["locations"]
    assert place["physicalLocation"] == {
        "artifactLocation": {"uri": "kernels/my%20gla.py", "uriBaseId": "SRCROOT"},
        "region": {"startLine": 42},
    }
    outside = sarif_of(with_place(report, "/opt/site-packages/fla/ops.py", 7))["runs"][0]["results"][0]["locations"][0]
    assert outside["physicalLocation"]["artifactLocation"] == {"uri": "file:///opt/site-packages/fla/ops.py"}


def test_sarif_grades_and_names_every_finding(report: Report) -> None:
    run = sarif_of(dataclasses.replace(report, laws={"agreement": "equals the reference"}))["runs"][0]
    assert [(r["ruleId"], r["level"]) for r in run["results"]] == [("agreement", "error"), ("gradients", "error")]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[r["ruleIndex"]]["id"] for r in run["results"]] == ["agreement", "gradients"]
    assert rules[0]["shortDescription"] == {"text": "equals the reference"}
    assert "linverify replay" in run["results"][0]["properties"]["replay"]
    assert run["invocations"][0]["exitCode"] == 1


def test_sarif_says_what_could_not_be_checked(report: Report) -> None:
    run = sarif_of(unchecked(report))["runs"][0]
    assert run["results"] == []
    invocation = run["invocations"][0]
    assert not invocation["executionSuccessful"]
    assert "importing my_gla.py raised ImportError" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_a_sarif_fingerprint_outlives_the_case(report: Report, numeric_failure: Failure) -> None:
    other = dataclasses.replace(numeric_failure, case_id="gla/B9.T9.H9.K9.V9/fp32", diagnosis="something else")
    result = report.results[0]
    first = dataclasses.replace(result.properties[0], failure=other)
    later = dataclasses.replace(
        report, results=(dataclasses.replace(result, properties=(first, *result.properties[1:])),)
    )
    prints = [[r["partialFingerprints"] for r in sarif_of(r)["runs"][0]["results"]] for r in (report, later)]
    assert prints[0] == prints[1]
    assert prints[0][0] != prints[0][1]


def test_sarif_tells_new_findings_from_old_ones(report: Report, passing: TargetResult) -> None:
    held = dataclasses.replace(
        report.results[0],
        properties=(PropertyResult("agreement", Status.PASS, True, 3), *report.results[0].properties[1:]),
    )
    before = dataclasses.replace(report, results=(held,))
    states = {r["ruleId"]: r["baselineState"] for r in sarif_of(report, before)["runs"][0]["results"]}
    assert states == {"agreement": "new", "gradients": "unchanged"}


# GitHub

COMMAND = re.compile(r"::(error|warning) (?:[a-z]+=[^:,]*(?:,[a-z]+=[^:,]*)*)::[^\r\n]*")


def test_every_annotation_is_one_workflow_command(any_report: Report) -> None:
    lines = annotations(any_report).splitlines()
    assert all(COMMAND.fullmatch(line) for line in lines), lines
    assert bool(lines) == bool(any_report.results)


def test_annotations_stand_at_the_kernel_s_line(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first, second, marginal = annotations(with_place(report)).splitlines()
    assert first.startswith("::error file=kernels/my gla.py,line=42,title=linverify%3A agreement is broken::my_gla.py")
    assert "%0Acase gla/B1.T33" in first
    assert "gradients is broken" in second
    assert marginal.startswith("::warning file=kernels/my gla.py,line=42,title=linverify%3A marginal%3A linearity::")
    (gone,) = annotations(unchecked(report)).splitlines()
    assert gone.startswith("::error file=my_gla.py,line=1,title=linverify%3A could not be checked::")


def test_what_github_would_cut_off_is_counted(report: Report) -> None:
    found = report.results[0].properties[0]
    many = dataclasses.replace(report.results[0], properties=(found,) * 14)
    lines = annotations(dataclasses.replace(report, results=(many,))).splitlines()
    assert len(lines) == 10
    assert lines[-1].endswith("and 5 more; the log and the job summary have all")


def test_the_job_summary_opens_with_the_verdicts(report: Report) -> None:
    text = job_summary(report)
    assert text.index("❌ violation | `my_gla.py::my_gla`") < text.index("✅ pass | `fla.ops.gla:chunk_gla`")
    assert text.index("✅ pass") < text.index("**agreement: violation.**")
    assert "linverify replay gla/B1.T33" in text
    assert "| (batch invariance) | reported | 6 | 0.50 | 75 s |" in text


def test_the_job_summary_is_not_longer_than_github_takes(report: Report) -> None:
    long = dataclasses.replace(report.results[0], notes=(), target="k" * 20_000)
    text = job_summary(dataclasses.replace(report, results=(long,) * 30))
    assert len(text.encode()) < 2**20
    assert re.search(r"\d+ targets left out here", text)


def test_no_text_of_a_kernel_becomes_markup_in_the_summary(odd: Report) -> None:
    text = re.sub(r"^(`{3,})text\n.*?\n\1$", "", job_summary(odd), flags=re.MULTILINE | re.DOTALL)
    assert "<b>" not in text
    assert "::error" not in text.splitlines()
    for row in text.splitlines():
        if row.startswith("| ❌"):
            assert len(re.findall(r"(?<!\\)\|", row)) == 5


# The record


def test_records_obey_the_published_schema(any_report: Report) -> None:
    RECORD.validate(json_file.to_json(any_report))


def test_the_schema_can_say_no(report: Report) -> None:
    good = json_file.to_json(report)
    for path, value in {
        ("schema_version",): 2,
        ("results", 0, "verdict"): "fine",
        ("results", 0, "properties", 0, "status"): "ok",
        ("results", 0, "properties", 0, "cases"): -1,
        ("results", 0, "properties", 0, "failure", "evidence", "share"): "25",
    }.items():
        bad = json.loads(json.dumps(good))
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            RECORD.validate(bad)
        with pytest.raises(jsonschema.ValidationError):
            RECORD.validate({k: v for k, v in good.items() if k != path[0]})


def records() -> Iterator[tuple[str, type]]:
    """Yield the schema's name of every record, and its class."""
    names = {"target": "TargetResult", "property": "PropertyResult"}
    for name in json.loads(json_file.schema())["$defs"]:
        if name not in ("number", "count", "status"):
            kind = names.get(name) or "".join(part.capitalize() for part in name.split("_"))
            yield name, getattr(verdict, kind, None) or getattr(insight, kind)


def test_the_schema_names_every_key_that_is_written_and_no_other() -> None:
    schema = json.loads(json_file.schema())
    assert set(schema["properties"]) == {f.name for f in dataclasses.fields(Report)}
    seen = set()
    for name, kind in records():
        keys = schema["$defs"][name]["properties"]
        assert set(keys) == {f.name for f in dataclasses.fields(kind)}, name
        assert set(schema["$defs"][name].get("required", ())) <= set(keys), name
        seen.add(kind)
    assert seen | {Report} == {v for m in (verdict, insight) for v in vars(m).values() if dataclasses.is_dataclass(v)}
    assert set(schema["$defs"]["status"]["enum"]) == {str(s) for s in Status}


@pytest.mark.parametrize("worst", [math.inf, None])
def test_an_infinite_share_is_not_read_as_no_share(
    report: Report, numeric_failure: Failure, worst: float | None
) -> None:
    endless = dataclasses.replace(
        numeric_failure.evidence, kind="not_finite" if worst else "not_bitwise", share=math.inf
    )
    failure = dataclasses.replace(numeric_failure, evidence=endless)
    found = PropertyResult("agreement", Status.VIOLATION, True, 1, 0, 1.0, worst, failure)
    run = dataclasses.replace(report, results=(dataclasses.replace(report.results[0], properties=(found,)),))
    record = json.loads(json_file.json_text(run))
    assert record["results"][0]["properties"][0]["worst_budget_fraction"] is None
    assert json_file.from_json(record) == run


def test_a_later_version_s_new_keys_are_left_out(report: Report) -> None:
    record = json_file.to_json(report)
    record["new"] = 1
    record["results"][0]["properties"][0]["failure"]["evidence"]["new"] = {"x": 1}
    RECORD.validate(record)
    assert json_file.from_json(record) == report


@pytest.mark.parametrize(
    ("key", "value"),
    [("results", None), ("results", [{}]), ("seed", "0"), ("environment", []), ("results", [{"target": 3}])],
)
def test_a_record_of_the_wrong_shape_is_turned_down(report: Report, key: str, value: object) -> None:
    with pytest.raises(ValueError, match="not a record of a linverify run: "):
        json_file.from_json({**json_file.to_json(report), key: value})
