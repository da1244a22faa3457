"""The benchmark of a standard check: its columns add up, and its sampler sees where an examiner is and nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from linverify.verdict import PropertyResult, Status, TargetResult
from tests.scripts import load

standard = load("standard_gpu")
SAMPLER = Path(standard.__file__).with_name("sampler.py")
SPIN = """
import time
def busy():
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        sum(range(100))
busy()
"""


def result(**seconds: float) -> TargetResult:
    laws = (
        PropertyResult("gradients", Status.PASS, True, 40, 0, seconds=4.0),
        PropertyResult("channel_balance", Status.PASS, True, 20, 0, seconds=2.0),
        PropertyResult("agreement", Status.PASS, True, 100, 0, seconds=5.0),
        PropertyResult("long_sequences", Status.NOT_OFFERED, True),
    )
    return TargetResult("k.py::f", "gla", "chunkwise", "triton", "pass", properties=laws, cases=140, seconds=seconds)


def test_a_run_is_taken_apart_without_a_rest() -> None:
    cold = standard.told("cold", 100.0, 1.5, result(total=70.0, compile=40.0, target=9.0), 6)
    assert cold.beyond == 71.5
    assert cold.imports + cold.beyond == cold.wall
    assert (cold.backward, cold.backward_seconds) == (60, 6.0)
    assert cold.a_second == pytest.approx(60.0)
    assert (cold.judged, cold.distinct) == (160, 140)
    assert list(cold.laws) == ["agreement", "gradients", "channel_balance"]
    cells = cold.row.strip("| ").split(" | ")
    assert len(cells) == len(standard.COLUMNS)
    assert cells[4] == "40.0 (x1.79)"
    assert standard.told("warm", 30.0, 1.0, result(total=20.0), 6).row.split(" | ")[4] == "-"


@pytest.mark.parametrize("module", ["linverify.examiner", "linverify.worker"])
def test_only_an_examiner_is_sampled(module: str, tmp_path: Path) -> None:
    """A process that forks must have one thread."""
    (tmp_path / "sitecustomize.py").write_text(SAMPLER.read_text())
    samples = tmp_path / "samples"
    samples.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "LINVERIFY_SAMPLES": str(samples)}
    subprocess.run([sys.executable, "-c", SPIN, module], env=environment, check=True, timeout=60)
    seen = dict(standard.stacks(samples))
    assert bool(seen) is (module == "linverify.examiner")
    if seen:
        busy = sum(n for stack, n in seen.items() if "busy" in stack)
        assert busy > 20
        assert busy > 0.8 * sum(seen.values())
        assert json.loads(next(samples.glob("*.json")).read_text()) == seen
