"""``linverify stability`` end to end: what it takes, what it says, how it exits, what it writes."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from linverify.cli import main
from linverify.reports.console import plain
from linverify.reports.stability import caption, print_stability, summary, thinned
from linverify.reports.stability_html import html
from linverify.reports.stability_json import json_text
from linverify.stability.records import Curve, Finding, Stability, StabilityReport, unchecked

HERE = Path(__file__).parent
KERNELS, BLOCKS = HERE / "stability_kernels.py", HERE / "stability_blocks.py"
SMALL = ["--layers", "4", "--steps", "10", "--batch", "2", "--length", "16", "--width", "16"]


@pytest.fixture
def findings() -> tuple[Finding, ...]:
    curve = Curve((1.0, 0.1, 0.01), (1.0, 10.0, 100.0), "Z", "|ds| / |do|", mark=0.1, label="by a score")
    near = Curve((0.2, 1.0), (0.5, 1.0), "share of the tokens", "share of the weight", (0.2, 1.0), linear=True)
    return (
        Finding(
            "D2", "supremum", "fp64", "unbounded", False, float("inf"), 1.0, "Z = 1e-9", "beyond <it>", {"sup": 2.0}
        ),
        Finding("D4", "growth", "fp64", "bounded by eps", True, -1.0, -1.0, "faded", "grows", {}, (curve,)),
        Finding("D6", "dilution", "fp64", "measured", True, 0.9, None, "ordinary", "spread", {}, (near,)),
        unchecked("D7", "finite", "fp16", "refused"),
    )


@pytest.fixture
def report(findings: tuple[Finding, ...]) -> StabilityReport:
    result = Stability(
        "k.py::f", "normalized_linear_attention", "1 / (Z + 1e-06)", "bounded by eps", findings, ("a note",)
    )
    return StabilityReport("0.1.0", {"device": "cpu"}, 0, (result,))


def test_the_console_says_verdicts_figures_inputs_and_plots(report: StabilityReport) -> None:
    console = plain(80)
    print_stability(console, report)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("VIOLATION  k.py::f  normalized_linear_attention\n")
    assert "its mechanism says bounded by eps: |dp/ds| up to 1 / (Z + 1e-06); 1 diagnostic" in " ".join(shown.split())
    assert "D2 supremum    unbounded      fp64   inf" in shown
    assert "▁▄█" in shown or "▁▅█" in shown
    assert "by a score: |ds| / |do| 1 to 100, Z 1 to 0.01" in shown
    assert "D7 finite      unchecked      fp16" in shown
    assert "note: a note" in shown


def test_the_page_is_whole_and_escapes_what_it_shows(report: StabilityReport) -> None:
    page = html(report)
    HTMLParser().feed(page)
    assert "<title>VIOLATION" in page
    assert "beyond &lt;it&gt;" in page
    assert page.count("<svg") == 2
    assert "default-src" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_record_holds_finite_numbers_only(report: StabilityReport) -> None:
    record = json.loads(json_text(report))
    (result,) = record["results"]
    assert (record["exit_code"], result["verdict"], result["operator"]) == (
        1,
        "violation",
        "normalized_linear_attention",
    )
    first, second, *_ = result["findings"]
    assert first["number"] is None
    assert first["figures"] == {"sup": 2.0}
    assert second["curves"][0]["x"] == [1.0, 0.1, 0.01]


def test_exit_codes_follow_the_findings(findings: tuple[Finding, ...]) -> None:
    def code(*some: Finding) -> int:
        return StabilityReport("", {}, 0, (Stability("t", "", "", "", some),)).exit_code

    assert code(*findings) == 1
    assert code(*findings[1:]) == 0
    assert code(findings[3]) == 3
    assert StabilityReport("", {}, 0, ()).exit_code == 3


def test_a_verdict_is_one_of_five() -> None:
    with pytest.raises(ValueError, match="expected a verdict among bounded"):
        Finding("D1", "gain", "fp64", "good", True, None, None, "", "")


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    assert thinned(range(100))[0] == 0
    assert thinned(range(100))[-1] == 99
    assert len(thinned(range(100))) == 40
    assert caption(Curve((1.0, 2.0), (3.0, 4.0), "x", "y")) == "y 3 to 4, x 1 to 2"


def test_a_sound_kernel_exits_with_0_and_writes_what_is_asked_for(tmp_path: Path, capsys) -> None:
    record, page = tmp_path / "s.json", tmp_path / "s.html"
    files = ["--json", str(record), "--html", str(page)]
    assert (
        main(["stability", f"{KERNELS}::right", "--op", "normalized_linear_attention", "--device", "cpu", *files]) == 0
    )
    assert "PASS" in capsys.readouterr().out
    (result,) = json.loads(record.read_text())["results"]
    assert {f["diagnostic"] for f in result["findings"]} == {"D1", "D2", "D3", "D4", "D6", "D7"}
    assert "<svg" in page.read_text()


def test_a_kernel_beyond_its_bound_exits_with_1(capsys) -> None:
    assert main(["stability", f"{KERNELS}::eps_dropped", "--op", "normalized_linear_attention", "--device", "cpu"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "VIOLATION" in shown
    assert "growth does not end, though 1 / (Z + 1e-06) ends it at 1e-06" in shown


def test_an_operator_without_an_eps_is_unbounded_and_no_violation(capsys) -> None:
    name = "normalized_linear_attention:phi=relu,eps=0"
    assert main(["stability", name, "--device", "cpu"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "its mechanism says unbounded: |dp/ds| up to 1 / (Z)" in shown
    assert "D4 growth unbounded fp64" in shown
    assert shown.count("PASS") == 3  # naive, recurrent, chunkwise


def test_a_format_can_be_named(capsys) -> None:
    target = "linverify.impls.torch_naive:softmax_attention"
    assert main(["stability", target, "--dtype", "bf16", "--device", "cpu"]) == 0
    assert "D2 supremum bounded bf16" in " ".join(capsys.readouterr().out.split())


def test_a_block_is_trained_and_a_decorated_kernel_is_not(capsys) -> None:
    assert main(["stability", f"{BLOCKS}:Block", "--set", "dim=16", "--device", "cpu", *SMALL]) == 0
    assert "D5 layers" in capsys.readouterr().out
    assert main(["stability", f"{BLOCKS}:declared", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "D5" not in shown
    assert "linear_attention" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.py:Block"], "no such file: nowhere.py"),
        ([f"{BLOCKS}:no_module"], "of a kernel say which operator it computes: --op"),
        ([f"{BLOCKS}:Absent"], "there is no 'Absent'"),
        (["softmax_attention:heads=3"], "softmax_attention has no parameter 'heads'"),
        (["gla", "--op", "retention"], "gla is an operator, and --op names another one"),
        (["gla", "--steps", "2"], "--steps 2: expected at least 10"),
        (["gla", "--layers", "0"], "--layers 0: expected at least 1"),
        (["gla", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["gla", "--json", "x.json", "--html", "x.json"], "goes to the same file"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments: list[str], told: str, capsys) -> None:
    assert main(["stability", *arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert told in error[-1]
    assert not any("Traceback" in line for line in error)


def test_a_target_that_cannot_be_imported_exits_with_3(tmp_path: Path, capsys) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise RuntimeError('no such driver')\n")
    assert main(["stability", f"{file}:Block", "--device", "cpu"]) == 3
    assert "no such driver" in capsys.readouterr().err


def test_summary_of_a_module_promises_nothing() -> None:
    assert summary(Stability("b.py:Block", "", "", "", ())) == "nothing is promised: what follows was measured"
