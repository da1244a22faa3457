"""What a check writes beside the console, with a session of its own: every format, the kernel's line, and closed pipes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import linverify.reports
from linverify import cli, config
from linverify.errors import LinverifyError
from linverify.outputs import Outputs, formats, writes
from linverify.reports import json_file
from linverify.verdict import Report
from tests.kernel_text import RIGHT

KERNEL = f"""
import torch

{RIGHT}
def wrong(q, k, v, g, scale=None):
    return 2 * right(q, k, v, g, scale)
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a file of kernels."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels.py").write_text(KERNEL)
    return tmp_path


def test_a_check_writes_every_format_and_knows_the_kernel_s_line(
    kernels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    arguments = "check kernels.py::wrong --op gla --dtype fp32 --property agreement --profile quick --device cpu"
    formats = ["--json", "run.json", "--html", "run.html", "--junit", "run.xml", "--sarif", "run.sarif", "--github"]
    assert cli.main([*arguments.split(), *formats]) == 1
    record = json.loads((kernels / "run.json").read_text())
    line = KERNEL.splitlines().index("def wrong(q, k, v, g, scale=None):") + 1
    assert [(r["file"], r["line"]) for r in record["results"]] == [("kernels.py", line)]
    assert record["replay_options"] == "--device cpu"
    assert list(record["laws"]) == ["agreement"]
    page = (kernels / "run.html").read_text()
    assert f"<code>kernels.py:{line}</code>" in page
    assert "Written by linverify" in page, "expected the reproducer itself"
    assert "<failure" in (kernels / "run.xml").read_text()
    place = json.loads((kernels / "run.sarif").read_text())["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"]["region"] == {"startLine": line}
    annotation = (
        f"\n::error file=kernels.py,line={line},title=linverify%3A agreement is broken::kernels.py::wrong (gla): "
    )
    assert annotation in capsys.readouterr().out


@pytest.mark.parametrize(("target", "code"), [("right", 0), ("wrong", 1)])
def test_a_reader_who_leaves_early_changes_no_verdict(kernels: Path, target: str, code: int) -> None:
    words = f"check kernels.py::{target} --op gla --property agreement --dtype fp32 --profile quick --json run.json"
    with subprocess.Popen(
        [sys.executable, "-m", "linverify", *words.split(), "--github"], stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        run.stdout.close()
        assert run.wait(120) == code
    assert json_file.read(kernels / "run.json").exit_code == code


NEW_FORMAT = """
from linverify.reports._format import Format

FORMAT = Format("lines", "Write a line a target.", lambda report, _: "".join(f"{r.target}\\n" for r in report.results))
"""


def test_a_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_run: Report) -> None:
    (tmp_path / "lines.py").write_text(NEW_FORMAT)
    monkeypatch.setattr(linverify.reports, "__path__", [*linverify.reports.__path__, str(tmp_path)])
    formats.cache_clear()
    try:

        @writes
        def show(count: int = 1, *, outputs: Outputs) -> int:
            assert outputs.words() == ["--lines", str(tmp_path / "out.txt"), "--github"]
            outputs.write(full_run)
            return count

        app = typer.Typer()
        app.command()(show)
        asked = ["--count", "7", "--lines", str(tmp_path / "out.txt"), "--github"]
        assert app(args=asked, standalone_mode=False) == 7
        assert (tmp_path / "out.txt").read_text().splitlines() == [r.target for r in full_run.results]
    finally:
        formats.cache_clear()
        sys.modules.pop("linverify.reports.lines", None)


def test_two_files_cannot_make_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.py").write_text(NEW_FORMAT.replace('"lines"', '"html"'))
    monkeypatch.setattr(linverify.reports, "__path__", [*linverify.reports.__path__, str(tmp_path)])
    formats.cache_clear()
    try:
        with pytest.raises(LinverifyError, match="two report formats are called 'html'"):
            formats()
    finally:
        formats.cache_clear()
        sys.modules.pop("linverify.reports.other", None)


def test_every_command_that_makes_a_record_writes_every_format() -> None:
    assert set(formats()) == {"html", "json", "junit", "sarif"}
    for command in (cli.check, cli.replay, cli.report):
        assert {*formats(), "github"} <= set(config.known(command))
