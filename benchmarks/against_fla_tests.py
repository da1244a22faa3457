"""flash-linear-attention's own tests of chunk_gla beside `linverify check --profile quick`: cases, time, planted faults found.

    python benchmarks/against_fla_tests.py --tests CHECKOUT [--seconds 190] [--limit 75] [--faults N] [--out against-fla]
                                           [--native] [--cores 3] [--device cuda:0]

CHECKOUT is a clone of github.com/fla-org/flash-linear-attention; of its tests/ops/test_gla.py the tests of the chunk form are
run, against the installed fla. Both first meet fla as it is, then each of the faults of fla_faults.py, in a copy of fla of its
own: pytest up to the first failure (of a test that does not fail anyway), linverify up to the first violation. Autotuning is
pinned to the first configuration for both, unless --native: tuned, each shape of each kernel costs minutes. A run has --cores
cores and is ended after --limit; several run at once, so times are those of a busy machine, the same for both.

Every run is a line of OUT/runs.jsonl; the same command goes on after the last. Prints a Markdown table. Exit code 0 where every
run has an answer. Needs pytest-xdist, and a GPU unless --device cpu has linverify run fla in the interpreter.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fla_faults import FAULTS, Fault, plant

HERE = Path(__file__).resolve().parent
SIDES = ("fla's tests", "linverify")
PLUGIN = "linverify_pins_autotuning"


@dataclass(frozen=True, slots=True)
class Run:
    """What one side said of one fault.

    Attributes:
        side: one of SIDES.
        fault: its name; "" for fla as it is.
        seconds: wall time, imports and compilation included.
        cases: that were judged; a test is one.
        found: what failed: tests, or laws.
        ended: "" where it came to an answer; otherwise why not.
    """

    side: str
    fault: str
    seconds: float
    cases: int
    found: tuple[str, ...]
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where runs take place.

    Attributes:
        out: folder of the records.
        tests: the test file, in a folder of its own.
        limit: seconds a run.
        mode: of autotuning: pin or native.
        device: that linverify is asked for.
    """

    out: Path
    tests: Path
    limit: float
    mode: str
    device: str

    def run(self, side: str, fault: Fault | None, known: Sequence[str], cores: Sequence[int]) -> Run:
        """Run one side on fla as it is or with a fault; failures of `known` do not count."""
        name = "" if fault is None else fault.name
        folder = (
            self.out / "work" / f"{side} {name}".replace("'", "").replace(" ", "-").replace("(", "").replace(")", "")
        )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if fault is not None:
            plant(fault, folder)
        (folder / f"{PLUGIN}.py").write_text(f"from linverify import autotune\n\nautotune.install({self.mode!r})\n")
        path = os.pathsep.join([str(folder), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        report = folder / ("report.xml" if side == SIDES[0] else "report.json")
        words = (
            self._pytest(report, known, len(cores))
            if side == SIDES[0]
            else self._linverify(report, known, first=fault is not None)
        )
        start = time.monotonic()
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *words],
                cwd=self.tests.parent,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout=self.limit)
                ended = ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                ended = f"no answer in {self.limit:.0f} s"
        seconds = round(time.monotonic() - start, 1)
        if ended or not report.exists():
            return Run(
                side, name, seconds, 0, (), ended or f"exit {process.returncode}: {_last_line(folder / 'log.txt')}"
            )
        cases, found = _junit(report) if side == SIDES[0] else _answer(report)
        if not cases:
            said = _last_line(folder / "log.txt") if side == SIDES[0] else json.loads(report.read_text())["said"]
            return Run(side, name, seconds, 0, (), f"nothing was judged: {said}")
        return Run(side, name, seconds, cases, tuple(f for f in found if f not in known))

    def _pytest(self, report: Path, known: Sequence[str], workers: int) -> list[str]:
        words = [
            "-m",
            "pytest",
            "-q",
            "-c",
            "pytest.ini",
            "--import-mode=importlib",
            "-p",
            PLUGIN,
            "-p",
            "no:cacheprovider",
        ]
        words += [
            "-k",
            "test_chunk",
            "-n",
            str(workers),
            f"--junitxml={report}",
            *(["-x"] if report.parent.joinpath("fla").exists() else []),
        ]
        return [*words, *(f"--deselect={self.tests.name}::{name}" for name in known), self.tests.name]

    def _linverify(self, report: Path, known: Sequence[str], *, first: bool) -> list[str]:
        words = [str(Path(__file__).resolve()), "--child", str(report), "--mode", self.mode, "--device", self.device]
        return [*words, "--without", ",".join(known), *(["--first"] if first else [])]


def check(report: Path, given: argparse.Namespace) -> None:
    """In a child: check chunk_gla with the quick profile, and write how many cases were judged and which laws are broken."""
    from linverify import registry
    from linverify.plan import Plan
    from linverify.session import check as checked
    from linverify.silence import Silence

    without = given.without.split(",") if given.without else []
    laws = tuple(n for n in registry.properties() if n not in without) if without else ()
    plan = Plan("fla.ops.gla:chunk_gla", "gla", device=given.device, profile="quick", properties=laws)
    plan = replace(plan, autotune=given.mode, fail_fast=given.first)
    (result,) = checked(plan, Silence())
    broken = [p.name for p in result.properties if p.required and p.status == "violation"]
    said = result.reason if result.verdict == "unchecked" else ""
    report.write_text(json.dumps({"cases": result.cases, "found": broken, "said": said, "seconds": result.seconds}))


def _answer(report: Path) -> tuple[int, tuple[str, ...]]:
    found = json.loads(report.read_text())
    return found["cases"], tuple(found["found"])


def _junit(report: Path) -> tuple[int, tuple[str, ...]]:
    """How many tests ran, and the names of those that failed."""
    tests = [t for t in ET.parse(report).iter("testcase") if t.find("skipped") is None]
    return len(tests), tuple(
        t.get("name", "") for t in tests if t.find("failure") is not None or t.find("error") is not None
    )


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no output"


def table(runs: Mapping[tuple[str, str], Run]) -> str:
    """Markdown: fla as it is, then every fault."""
    lines = [
        "| | " + " | ".join(f"{side} | s | cases" for side in SIDES) + " |",
        "| --- |" + " --- | ---: | ---: |" * 2,
    ]
    for name, what in [("", "fla as it is"), *((f.name, f"**{f.name}**: {f.what}") for f in FAULTS)]:
        cells = []
        for side in SIDES:
            run = runs.get((side, name))
            if run is None:
                cells.append("not run | - | -")
            else:
                said = ", ".join(run.found[:3]) + (", ..." if run.found[3:] else "")
                answer = ("**found**: " if name else "fails: ") + said if run.found else "nothing found"
                word = run.ended or answer
                cells.append(f"{word} | {run.seconds:.0f} | {run.cases}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    found = [f"{side}: {sum(bool(r.found) for (s, n), r in runs.items() if s == side and n)}" for side in SIDES]
    asked = len({n for _, n in runs if n})
    return "\n".join([*lines, "", f"Found of {asked} faults asked: {', '.join(found)}."])


def settled(out: Path) -> dict[tuple[str, str], Run]:
    """Runs that are recorded."""
    path = out / "runs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(r["side"], r["fault"]): Run(**{**r, "found": tuple(r["found"])}) for r in rows}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="a checkout of flash-linear-attention, or its tests/ops/test_gla.py")
    parser.add_argument("--seconds", type=float, default=190.0, help="after which no further run is begun")
    parser.add_argument("--limit", type=float, default=75.0, help="seconds a run")
    parser.add_argument("--cores", type=int, default=3, help="of each run")
    parser.add_argument("--faults", type=int, default=len(FAULTS), help="only so many of them")
    parser.add_argument("--native", action="store_true", help="leave autotuning as it is")
    parser.add_argument("--out", type=Path, default=Path("against-fla"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--without", help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        check(given.child, given)
        return 0
    file = given.tests if given.tests and given.tests.is_file() else (given.tests or Path()) / "tests/ops/test_gla.py"
    if given.tests is None or not file.is_file():
        parser.error(f"--tests: expected a checkout with {file}, got {given.tests}")
    out = given.out.resolve()
    place = out / "tests"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, place)
    (place / "pytest.ini").write_text("[pytest]\n")
    desk = Desk(out, place / file.name, given.limit, "native" if given.native else "pin", given.device)
    runs, lock, start = settled(out), threading.Lock(), time.monotonic()

    def one(side: str, fault: Fault | None, cores: Sequence[int]) -> None:
        key = (side, "" if fault is None else fault.name)
        late = time.monotonic() - start > given.seconds
        if (key in runs and not runs[key].ended) or late:
            return
        before = runs.get((side, ""))
        run = desk.run(side, fault, () if fault is None or before is None else before.found, cores)
        with lock:
            runs[key] = run
            with (out / "runs.jsonl").open("a") as stream:
                stream.write(json.dumps(asdict(run)) + "\n")
            print(
                f"{side:12} {run.fault or 'as it is':32} {run.seconds:5.1f} s {run.cases:4} {run.ended or run.found[:2]}",
                flush=True,
            )

    every = sorted(os.sched_getaffinity(0))
    half = len(every) // 2 or 1
    with ThreadPoolExecutor(2) as pool:  # as it is; this compiles what all faults have in common
        list(pool.map(lambda a: one(*a), [(SIDES[0], None, every[:half]), (SIDES[1], None, every[-half:])]))
    count = max(1, len(every) // given.cores)
    free = [every[i * given.cores : (i + 1) * given.cores] or every for i in range(count)]

    def in_turn(job: tuple[str, Fault]) -> None:
        with lock:
            cores = free.pop()
        try:
            one(*job, cores)
        finally:
            with lock:
                free.append(cores)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(in_turn, [(side, fault) for fault in FAULTS[: given.faults] for side in SIDES]))
    print(
        f"\nAutotuning {'as it is' if given.native else 'pinned'}, {given.cores} of {len(every)} cores a run.\n\n{table(runs)}"
    )
    wanted = {(s, n) for s in SIDES for n in ("", *(f.name for f in FAULTS[: given.faults]))}
    return 0 if all(k in runs and not runs[k].ended for k in wanted) else 1


if __name__ == "__main__":
    raise SystemExit(main())
