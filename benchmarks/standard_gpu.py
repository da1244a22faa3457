"""How long a standard check takes, cold and warm: what one command costs a user, and where the time goes.

    python benchmarks/standard_gpu.py                                  fla's chunk_gla on the GPU, six processes
    python benchmarks/standard_gpu.py torch_chunkwise:gla --device cpu --runs warm
    python benchmarks/standard_gpu.py --sample --runs warm             of the last run: where its processes are, every 5 ms

Each run is `linverify check` as typed, in processes of its own. The cold one finds an empty compiler's cache, the warm ones
what it left there. Its wall time is taken apart into importing (torch and the target, in all processes) and what lies beyond.
Writes FOLDER/standard.json, FOLDER/standard.md and each run's report; with --sample also FOLDER/stacks.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linverify import registry
from linverify.reports import json_file
from linverify.verdict import TargetResult

HOME = Path(__file__).resolve().parents[1]
SAMPLER = Path(__file__).with_name("sampler.py")


@dataclass(frozen=True, slots=True)
class Run:
    """One check, in seconds.

    Attributes:
        kind: cold or warm.
        wall: from the first word of the command to its end.
        imports: of that, until the target is imported in every process, and the writing of the report.
        beyond: the rest: compiling, the laws, what is looked into, the end of all processes.
        compiling: of `beyond`, until the longest of the lanes that compile beforehand is through.
        judged: pairs of a law and a case; the search for worse cases, which goes by the clock, included.
        distinct: cases in them.
        backward: cases of laws that never do without gradients, a case of two laws counted twice.
        backward_seconds: that these laws took, summed over all processes.
        target, reference, judge: summed over all processes.
        laws: cases and seconds by law, the longest first.
        verdict: of the check.
        processes: that share the laws.
    """

    kind: str
    wall: float
    imports: float
    beyond: float
    compiling: float
    judged: int
    distinct: int
    backward: int
    backward_seconds: float
    target: float
    reference: float
    judge: float
    verdict: str
    processes: int
    laws: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def a_second(self) -> float:
        """Backward cases that all processes together judge in a second in which they ask nothing else."""
        return self.processes * self.backward / max(self.backward_seconds, 1e-9)

    @property
    def row(self) -> str:
        """Cells of the table."""
        compiled = f"{self.compiling:.1f} (x{self.beyond / self.compiling:.2f})" if self.compiling > 1 else "-"
        seconds = (self.wall, self.imports, self.beyond)
        parts = [f"{s:.0f}" for s in (self.target, self.reference, self.judge)]
        judged = (compiled, f"{self.judged} ({self.distinct})", f"{self.a_second:.1f}")
        cells = [self.kind, *(f"{s:.1f}" for s in seconds), *judged, *parts]
        return f"| {' | '.join(cells)} | {self.verdict} |"


COLUMNS = (
    *("run", "wall, s", "imports", "beyond imports", "longest compile lane (beyond / lane)", "judged (distinct cases)"),
    *("backward cases a second", "kernel", "reference", "judge", "verdict"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def asked(target: str, options: argparse.Namespace) -> list[str]:
    """The command line of a check."""
    words = ["check", target, "--profile", options.profile, "-n", str(options.n), "--device", options.device]
    return [*words, *(["--op", options.op] if options.op else []), *options.rest]


def run(kind: str, words: Sequence[str], name: Path, cache: Path, processes: int, sampled: Path | None) -> Run:
    """Check once; the record is `name`.json, the report `name`.txt."""
    record, report = name.with_suffix(".json"), name.with_suffix(".txt")
    record.unlink(missing_ok=True)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "COLUMNS": "130"}
    paths = [str(HOME), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    with tempfile.TemporaryDirectory() as site:
        if sampled is not None:
            Path(site, "sitecustomize.py").write_text(SAMPLER.read_text())
            sampled.mkdir()
            environment |= {"LINVERIFY_SAMPLES": str(sampled)}
            paths.insert(0, site)
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        start, began = time.perf_counter(), time.time()
        with report.open("w") as out:
            command = [sys.executable, "-P", "-m", "linverify", *words, "--json", str(record)]
            code = subprocess.run(command, env=environment, stdout=out, stderr=out, cwd=name.parent, check=False)
        wall = time.perf_counter() - start
    if not record.is_file():
        raise SystemExit(f"no record was written (exit code {code.returncode}): see {report}")
    ending = max(0.0, began + wall - record.stat().st_mtime)
    return told(kind, wall, ending, json_file.read(record).results[0], processes)


def told(kind: str, wall: float, ending: float, result: TargetResult, processes: int) -> Run:
    """What a record says of the time; `ending`: seconds from its writing to the end of the last process."""
    seconds, laws = result.seconds, registry.properties()
    beyond = seconds["total"] + ending
    backward = [p for p in result.properties if "none" not in laws[p.name].space.cotangents]
    return Run(
        kind,
        wall,
        wall - beyond,
        beyond,
        seconds.get("compile", 0.0),
        sum(p.cases for p in result.properties),
        result.cases,
        sum(p.cases for p in backward),
        sum(p.seconds for p in backward),
        *(seconds.get(part, 0.0) for part in ("target", "reference", "judge")),
        result.verdict,
        processes,
        {p.name: (p.cases, p.seconds) for p in sorted(result.properties, key=lambda p: -p.seconds) if p.cases},
    )


def stacks(folder: Path) -> Iterator[tuple[str, int]]:
    """Where the processes were, most often first: frames of a stack joined by ';', and how often it was seen."""
    found: Counter[str] = Counter()
    for file in folder.glob("*.json"):
        found.update(json.loads(file.read_text()))
    yield from found.most_common()


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="fla.ops.gla:chunk_gla")
    parser.add_argument("--op", default="gla")
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("-n", type=int, default=6)
    parser.add_argument("--runs", default="cold,warm", help="in order; a cold one begins with an empty cache")
    parser.add_argument("--cache", type=Path, help="compiler's cache of a warm run that no cold one comes before")
    parser.add_argument("--folder", type=Path, default=Path("standard"))
    parser.add_argument("--sample", action="store_true")
    options, options.rest = parser.parse_known_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    target = options.target if "." in options.target else f"linverify.impls.{options.target}"
    with tempfile.TemporaryDirectory(dir=folder) as spare:
        cache, runs = options.cache or Path(spare, "cache"), list[Run]()
        print(HEAD, flush=True)
        kinds = options.runs.split(",")
        for n, kind in enumerate(kinds):
            if kind == "cold":
                cache = Path(spare, f"cold{n}")
            sampled = Path(spare, "samples") if options.sample and n == len(kinds) - 1 else None
            runs.append(run(kind, asked(target, options), folder / f"{n}-{kind}", cache.resolve(), options.n, sampled))
            print(runs[-1].row, flush=True)
            if sampled is not None:
                (folder / "stacks.json").write_text(json.dumps(dict(stacks(sampled)), indent=0))
    table = "\n".join([HEAD, *(r.row for r in runs)])
    (folder / "standard.md").write_text(f"{table}\n")
    (folder / "standard.json").write_text(json.dumps([{**asdict(r), "a_second": r.a_second} for r in runs], indent=1))


if __name__ == "__main__":
    main()
