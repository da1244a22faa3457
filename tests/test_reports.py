"""The clerk: what a reader sees at fixed widths, and the machine record."""

import dataclasses
import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console

from linverify.insight import Insight
from linverify.reports import json_file
from linverify.reports.console import failure_as_text, plain, print_target, replay_command
from linverify.reports.progress import Progress
from linverify.reports.share_bar import ShareBar
from linverify.reports.telling import alike, telling
from linverify.reports.text import counted, duration, share
from linverify.verdict import Evidence, PropertyResult, Report, Status, TargetResult


def rendered(result: TargetResult, width: int, **options: str) -> str:
    console = plain(width)
    print_target(console, result, **options)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


PASSING_80 = """\
PASS  fla.ops.gla:chunk_gla  gla
  1 required property held, 12 cases judged; worst share 0.62

property    status   cases   share of   budget                  time
────────────────────────────────────────────────────────────────────
agreement   pass        12       0.62   ━━━━━━━━━      │       3.0 s

share of the budget   fp32 as tf32
──────────────────────────────────
o                             0.62

time: in all 3.0 s
"""

VIOLATION_TABLE_80 = """\
VIOLATION  my_gla.py::my_gla  gla · chunkwise · triton
  2 of 4 required properties broken, 27 cases judged; worst share 25.0

property             status      cases   refused   share of   budget        time
────────────────────────────────────────────────────────────────────────────────
agreement            violation      12         1       25.0   ━━━━━━━━│▶   3.2 s
gradients            violation       4         -          -                1.5 s
causality            pass            8         -       0.41   ━━━     │    2.0 s
linearity            marginal        8         -      >1.00   ━━━━━━━━│━   2.0 s
packed               refused         0         5          -                0.2 s
state passing        unchecked       0         -          -                0.0 s
(batch invariance)   reported        6         -       0.50   ━━━━    │     75 s
(in brackets: looked at and reported; the verdict does not depend on it)
default scale: not offered (no scale argument)
reductions: not applicable (gla has no simpler operator)
packed: refused (every case was refused)
state passing: unchecked (time ran out)

share of the budget   fp32   bf16
─────────────────────────────────
o                     0.20   25.0
dq                       -   0.75

refused (a limitation, neither pass nor violation)
  OutOfResources: shared memory
    5 cases; smallest gla/B1.T16.H1.K256.V16/fp32

note: gradients of initial_state are not offered
"""

FAILURE_120 = """\
────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
VIOLATION  agreement  my_gla.py::my_gla  gla
case         gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
shrunk from  gla/B2.T100.H3.K32.V48/bf16/gate=mild/seed=3
what         wrong value in o
how many     17 of 561 elements
how far      0.312 (expected 1.25, got 0.9375)
where        b=0, t=32, h=0, v=5
allowed      0.0125; share of the budget 25.0, by the maximum
location     first at t = 32; t = 0 mod 16; 1 of 1 heads; suspected chunk size 16
diagnosis    The last chunk is wrong when T is no multiple of 16: rows beyond T are read without a mask.
reproducer   .linverify/gla-agreement.py
replay       linverify replay gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3 --target my_gla.py::my_gla --op gla --property agreement
"""


def test_a_pass_opens_with_its_verdict_and_shows_the_share_of_the_budget(passing: TargetResult) -> None:
    assert rendered(passing, 80) == PASSING_80


def test_every_status_has_its_row_or_line(violation: TargetResult) -> None:
    assert rendered(violation, 80).startswith(VIOLATION_TABLE_80)


def test_a_failure_gives_the_four_facts_in_order_and_ends_with_a_command(violation: TargetResult) -> None:
    assert FAILURE_120 in rendered(violation, 120)


FURTHER_80 = """\
────────────────────────────────────────────────────────────────────────────────
also
violation  law 1, law 4
    The last chunk is wrong when T is no multiple of 16: rows beyond T are read
    without a mask.
    gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3
violation  law 3
    crash
    gla/B1.T1.H1.K16.V16/fp32
"""


def test_laws_that_fail_alike_are_told_together(violation: TargetResult) -> None:
    numeric, process = violation.properties[:2]
    assert process.failure is not None
    silent = dataclasses.replace(process.failure, evidence=Evidence("crash"))
    process = dataclasses.replace(process, failure=silent)
    kinds = [numeric, numeric, process, process, numeric]
    found = tuple(dataclasses.replace(p, name=f"law_{i}") for i, p in enumerate(kinds))
    assert FURTHER_80 in rendered(dataclasses.replace(violation, properties=found), 80)


def failed(result: PropertyResult, name: str, wrong: str, right: str = "", **changes: object) -> PropertyResult:
    assert result.failure is not None
    failure = dataclasses.replace(result.failure, wrong=tuple(wrong.split()), right=tuple(right.split()))
    return dataclasses.replace(result, name=name, failure=failure, **changes)  # type: ignore[arg-type]


def test_a_failure_says_which_results_are_wrong_and_which_are_right(violation: TargetResult) -> None:
    one = failed(violation.properties[0], "gradients", "dk dg", "o dq dv")
    assert "results      wrong: dk, dg; right: o, dq, dv" in failure_as_text(violation, one)
    assert "needs" not in failure_as_text(violation, one)
    assert one.failure is not None
    lone = dataclasses.replace(one, failure=dataclasses.replace(one.failure, needs=("a gate",)))
    assert "needs        a gate; without it the same case is right" in failure_as_text(violation, lone)
    both = dataclasses.replace(one, failure=dataclasses.replace(one.failure, needs=("a gate", "a second head")))
    assert "a gate; a second head; without any of these the same case is right" in failure_as_text(violation, both)
    assert "results " not in failure_as_text(violation, failed(one, "agreement", "o"))


def test_what_is_told_in_full_is_the_first_then_other_kinds_and_what_judges_more(violation: TargetResult) -> None:
    numeric, process = violation.properties[:2]
    laws = [
        failed(numeric, "agreement", "o"),
        failed(numeric, "gradients", "o dq", "dk"),
        failed(numeric, "call_history", "dq"),
        failed(numeric, "reported", "o", status=Status.REPORTED, required=False),
        failed(process, "crashes", ""),
        failed(numeric, "packed", "o dv", "dk"),
    ]
    full, rest = telling([laws[3], *laws[:3], *laws[4:]])
    assert [p.name for p in full] == ["agreement", "gradients", "crashes"]
    assert [p.name for p in rest] == ["call_history", "packed", "reported"]
    assert [p.name for p in rest if alike(p, full)] == ["call_history"]
    text = rendered(dataclasses.replace(violation, properties=tuple(laws)), 80)
    assert "violation  call history\n    the results named above are wrong in their cases, too\n" in text


def test_a_process_outcome_shows_its_log_and_no_numbers(violation: TargetResult) -> None:
    text = failure_as_text(violation, violation.properties[1], width=80)
    assert "what         crash: the process died of SIGSEGV" in text
    assert "Fatal Python error: Segmentation fault" in text
    assert 'File "k.py", line 3 in crash' in text
    assert "worker.py" not in text
    assert "Extension modules" not in text
    assert "how many" not in text
    assert "allowed" not in text


def test_values_that_differ_never_read_alike(violation: TargetResult) -> None:
    first = violation.properties[0]
    assert first.failure is not None
    for got, text in [(1.0 + 2.0**-24, "1.00000006"), (1.0 + 2.0**-52, "1.0000000000000002"), (1.0, "1")]:
        evidence = dataclasses.replace(first.failure.evidence, expected=1.0, got=got)
        found = dataclasses.replace(first, failure=dataclasses.replace(first.failure, evidence=evidence))
        assert f"got {text})" in failure_as_text(violation, found)


def test_a_bitwise_failure_allows_nothing(violation: TargetResult) -> None:
    first = violation.properties[0]
    assert first.failure is not None
    evidence = Evidence("not_bitwise", "o", how_many=1, of=4, how_far=1e-9, where="t=0", expected=0.0, got=1e-9)
    found = dataclasses.replace(first, failure=dataclasses.replace(first.failure, evidence=evidence))
    assert "allowed      nothing: equal bit by bit" in failure_as_text(violation, found)


def test_a_target_that_could_not_be_checked_says_why() -> None:
    result = TargetResult("a.py::f", "gla", "", "", "unchecked", reason="the import raises: ModuleNotFoundError")
    assert rendered(result, 80) == "UNCHECKED  a.py::f  gla\n  the import raises: ModuleNotFoundError\n"


def test_the_replay_command_is_one_line_that_a_shell_understands(violation: TargetResult) -> None:
    spaced = dataclasses.replace(violation, target="my kernels/gla.py::f")
    found = violation.properties[1]
    expected = (
        "linverify replay gla/B1.T1.H1.K16.V16/fp32 --target 'my kernels/gla.py::f' --op gla --property gradients"
        " --set 'CHUNK=[16, 32]'"
    )
    assert replay_command(spaced, found, "--set 'CHUNK=[16, 32]'") == expected
    assert replay_command(violation, found, "--op gla:x=1").count("--op") == 1
    assert f"replay       {expected}\n" in rendered(spaced, 80, replay_options="--set 'CHUNK=[16, 32]'")


def test_no_colour_and_a_dumb_terminal_stay_readable(violation: TargetResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    stream = io.StringIO()
    print_target(Console(file=stream, force_terminal=True, width=80), violation)
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    assert "\x1b[3" not in text
    assert text.startswith(VIOLATION_TABLE_80)


def test_a_terminal_without_unicode_gets_ascii(violation: TargetResult) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    console = Console(file=stream, width=80)
    console.print(ShareBar(2.0, 12))
    stream.flush()
    assert raw.getvalue() == b"=========|=>"


@pytest.mark.parametrize(
    ("value", "bar"),
    [
        (None, "            "),
        (0.0, "         │  "),
        (0.001, "━        │  "),
        (0.5, "━━━━     │  "),
        (1.0, "━━━━━━━━━│  "),
        (1.001, "━━━━━━━━━│━ "),
        (float("inf"), "━━━━━━━━━│━▶"),
    ],
)
def test_the_bar_crosses_the_line_exactly_when_the_share_does(value: float | None, bar: str) -> None:
    assert ShareBar(value).cells(12) == bar


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.00"),
        (0.4149, "0.41"),
        (1.0, "1.00"),
        (1.0001, ">1.00"),
        (1.01, "1.01"),
        (25.0, "25.0"),
        (4100.0, "4.1e+03"),
    ],
)
def test_a_share_beyond_the_line_never_reads_as_one_on_it(value: float | None, text: str) -> None:
    assert share(value) == text
    assert share(math.inf) == "inf"


def test_durations_and_counts() -> None:
    assert [duration(s) for s in (0.04, 12.3, 150.0, 601.0, 7300.0)] == [
        "0.0 s",
        "12 s",
        "150 s",
        "10 min",
        "2 h 2 min",
    ]
    assert (counted(1, "case"), counted(2, "case"), counted(0, "property", "properties")) == (
        "1 case",
        "2 cases",
        "0 properties",
    )


def test_progress_is_silent_in_a_pipe_and_announces_violations_on_a_terminal(violation: TargetResult) -> None:
    def run(console: Console) -> None:
        with Progress(console) as progress:
            progress.target_started("t", "gla", ["agreement"])
            progress.property_started("agreement")
            progress.case_judged("agreement", "gla/B1.T1.H1.K1.V1/fp32", 0.5)
            progress.property_finished(violation.properties[0])
            progress.note("hello")
            progress.target_finished(violation)

    pipe, terminal = io.StringIO(), io.StringIO()
    run(Console(file=pipe))
    run(Console(file=terminal, force_terminal=True, width=100, _environ={"TERM": "xterm"}))
    assert pipe.getvalue() == ""
    assert "violation" in terminal.getvalue()
    assert "hello" in terminal.getvalue()


def test_the_record_has_the_agreed_keys_and_strings(report: Report) -> None:
    record = json_file.to_json(report)
    assert next(iter(record)) == "schema_version"
    assert {"schema_version", "linverify_version", "environment", "seed", "results"} <= set(record)
    result = record["results"][0]
    assert {"target", "operator", "verdict", "properties"} <= set(result)
    assert result["verdict"] == "violation"
    keys = {"name", "status", "required", "cases", "refused", "seconds", "worst_budget_fraction", "failure"}
    assert all(keys <= set(p) for p in result["properties"])
    assert {p["status"] for p in result["properties"]} == {str(s) for s in Status}
    failure = result["properties"][0]["failure"]
    assert {"case_id", "sizes", "evidence", "location", "diagnosis", "reproducer"} <= set(failure)


def test_the_record_survives_a_file(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("what was there before")
    json_file.write(report, path)
    assert json_file.from_json(json.loads(path.read_text())) == report
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert path.stat().st_mode & 0o444 == 0o444 & ~os.umask(os.umask(0))


def test_the_numbers_of_a_list_stand_on_one_line_and_no_text_is_touched(report: Report, insight: Insight) -> None:
    notes = ("[\n  1,\n  2\n]", "[ 1, 2 ]", "[]", "a [\n    3\n  ] b")
    result = dataclasses.replace(report.results[0], insight=insight, notes=notes)
    whole = dataclasses.replace(report, results=(result,))
    text = json_file.json_text(whole)
    assert json_file.from_json(json.loads(text)) == whole
    assert json.loads(text) == json.loads(json.dumps(json_file.to_json(whole)))
    assert len(text.splitlines()) < 450
    assert '"lengths": [64, 128, 256, 512, 1024, 2048],' in text


def test_numbers_without_a_spelling_in_json_become_null(passing: TargetResult, tmp_path: Path) -> None:
    bad = PropertyResult("x", Status.PASS, True, 1, 0, 0.0, math.nan)
    report = Report(
        "0", {}, 0, "quick", (dataclasses.replace(passing, properties=(bad,), seconds={"total": math.inf}),)
    )
    json_file.write(report, tmp_path / "run.json")
    result = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)["results"][0]
    assert result["properties"][0]["worst_budget_fraction"] is None
    assert result["seconds"]["total"] is None


def test_a_record_that_cannot_be_written_leaves_the_old_one(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    broken = dataclasses.replace(report, environment={"x": "\ud800"})  # a lone surrogate cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        json_file.write(broken, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("record", [{}, {"schema_version": 99}, {"schema_version": 1, "results": [{"target": "t"}]}])
def test_a_foreign_record_is_turned_down_with_a_reason(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"schema_version|not a record"):
        json_file.from_json(record)


@pytest.mark.parametrize(
    ("verdicts", "code"), [((), 3), (("pass",), 0), (("pass", "unchecked"), 3), (("unchecked", "violation"), 1)]
)
def test_one_beats_three_beats_zero(verdicts: tuple[str, ...], code: int) -> None:
    results = tuple(TargetResult("t", "gla", "", "", v) for v in verdicts)
    assert Report("0", {}, 0, "quick", results).exit_code == code
