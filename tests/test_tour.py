"""``python -m linverify`` shows a kernel that is right and the same kernel with one line wrong, and says what is wrong."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from linverify import registry, starter
from linverify.tour import RIGHT, WRONG, tour

ROOT = Path(__file__).resolve().parents[1]


def test_the_tour_shows_both_verdicts_and_names_the_mistake(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "linverify"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    right, mistake, wrong = (
        done.stdout.index(text) for text in ("PASS  gla.py::gla", f"+        {WRONG}", "VIOLATION  gla")
    )
    assert right < mistake < wrong
    assert "what the equations give with g of the previous token at each token" in done.stdout
    (folder,) = tmp_path.iterdir()
    assert WRONG in (folder / "gla.py").read_text()
    assert list(folder.glob(".linverify/*.py")), "the reproducer that the report names"


def test_the_line_that_is_changed_is_there_once() -> None:
    assert starter.starter(registry.operator("gla"), "gla.py").count(RIGHT) == 1


@pytest.mark.parametrize(
    ("codes", "code"), [((0, 0, 1), 0), ((0, 0, 0), 1), ((0, 1, 1), 1), ((0, 130), 130), ((2,), 1)]
)
def test_a_tour_that_goes_wrong_does_not_end_well(
    codes: tuple[int, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    left = iter(codes)

    def command(words: Sequence[str]) -> int:
        if words[0] == "init":
            starter.write(registry.operator("gla"), Path("gla.py"))
        return next(left)

    assert tour(command) == code
    assert not list(left)
