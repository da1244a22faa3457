"""The published schema of stability records: every kind of target obeys it, and it names every key and no other."""

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import pytest

from linverify.cli import main
from linverify.dtype import FORMATS
from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED
from linverify.reports import stability_json
from linverify.stability.records import VERDICTS, Curve, Finding, Stability, StabilityReport, unchecked

HERE = Path(__file__).parent
SCHEMA = json.loads(stability_json.schema())
RECORD = jsonschema.Draft202012Validator(SCHEMA)
SMALL = ["--layers", "4", "--steps", "10", "--batch", "2", "--length", "16", "--set", "dim=16"]


@pytest.fixture
def report() -> StabilityReport:
    curve = Curve((1.0, 0.1), (1.0, math.inf), "Z", "|ds| / |do|", mark=0.1, label="by a score")
    sup = Finding(
        "D2", "supremum", "fp64", "unbounded", False, math.inf, 1.0, "Z = 1e-9", "beyond", {"cap": math.inf}, (curve,)
    )
    results = Stability("k.py::f", "gla", "1", "bounded", (sup, unchecked("D7", "finite", "fp16", "refused")), ("n",))
    return StabilityReport("0.1.0", {"device": "cpu"}, 0, (results, Stability("b.py:B", "", "", "", ())))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["gla", "--dtype", "fp32"], 0),
        ([f"{HERE / 'stability_kernels.py'}::eps_dropped", "--op", "normalized_linear_attention"], 1),
        ([f"{HERE / 'stability_mixers.py'}:WithEpsUnnamed", *SMALL], 1),  # 1e-6 is next to nothing in float16
        ([f"{HERE / 'stability_mixers.py'}:Window", *SMALL], 0),
    ],
    ids=["operator", "kernel", "module", "module without scores"],
)
def test_what_is_really_written_obeys_the_schema(arguments: list[str], code: int, tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.json"
    assert main(["stability", *arguments, "--device", "cpu", "--json", str(path)]) == code, capsys.readouterr()
    record = json.loads(path.read_text())
    RECORD.validate(record)
    assert record["exit_code"] == code
    assert next(iter(record)) == "schema_version"
    assert sum(len(r["findings"]) for r in record["results"]) >= 6


def test_infinite_numbers_obey_the_schema(report: StabilityReport) -> None:
    record = stability_json.to_json(report)
    RECORD.validate(record)
    assert record["results"][0]["findings"][0]["curves"][0]["y"] == [1.0, None]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("exit_code",), 2),
        (("results", 0, "verdict"), "fine"),
        (("results", 0, "promise"), "perhaps"),
        (("results", 0, "findings", 0, "diagnostic"), "D8"),
        (("results", 0, "findings", 0, "verdict"), "good"),
        (("results", 0, "findings", 0, "number"), "25"),
        (("results", 0, "findings", 0, "figures", "cap"), "1"),
        (("results", 0, "findings", 0, "curves", 0, "x"), 1.0),
    ],
    ids=str,
)
def test_the_schema_can_say_no(report: StabilityReport, path: tuple, value: object) -> None:
    record = json.loads(stability_json.json_text(report))
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        RECORD.validate(record)
    if "figures" not in path:
        del place[path[-1]]
        with pytest.raises(jsonschema.ValidationError, match="required property"):
            RECORD.validate(record)


def test_the_schema_names_every_key_that_is_written_and_no_other() -> None:
    written = {
        "stability": {f.name for f in dataclasses.fields(Stability)} | {"verdict"},
        "finding": {f.name for f in dataclasses.fields(Finding)},
        "curve": {f.name for f in dataclasses.fields(Curve)},
    }
    assert set(SCHEMA["$defs"]) == {*written, "number"}
    for name, keys in written.items():
        assert set(SCHEMA["$defs"][name]["properties"]) == set(SCHEMA["$defs"][name]["required"]) == keys
    top = {f.name for f in dataclasses.fields(StabilityReport)} | {"exit_code"}
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == top


def test_the_schema_has_the_words_of_the_records() -> None:
    finding, stability = (SCHEMA["$defs"][n]["properties"] for n in ("finding", "stability"))
    assert tuple(finding["verdict"]["enum"]) == VERDICTS
    assert set(finding["dtype"]["enum"]) == {*FORMATS, ""}
    assert set(stability["promise"]["enum"]) == {"", BOUNDED, BY_EPS, UNBOUNDED}


def test_a_later_version_s_new_keys_are_allowed(report: StabilityReport) -> None:
    record = stability_json.to_json(report)
    record["new"] = 1
    record["results"][0]["findings"][0]["curves"][0]["new"] = {"x": 1}
    RECORD.validate(record)


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stability", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_without_a_target_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stability"]) == 2
    assert "expected a TARGET" in capsys.readouterr().err
