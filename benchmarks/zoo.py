"""The bug zoo under linverify: which bugs are found, by which law, how soon, and which correct kernels are flagged.

    python benchmarks/zoo.py all [--jobs 16] [--minutes 8] [--only GLOB] [--profiles quick,standard] [--out FILE.jsonl]
    python benchmarks/zoo.py bugs|correct|rivals [the same]
    python benchmarks/zoo.py all --device cuda:0 --out docs/published/zoo-h100.jsonl
    python benchmarks/zoo.py page [FILE.jsonl ...]

A bug is asked in each profile under all laws, up to the first violation, and under the law that is there for it alone, in the
smallest profile that finds it. A correct kernel is asked everything, at ten seeds of `quick` and two of `standard`. `rivals`
asks other rules about the kernels in torch (zoo_rivals.py). On a GPU the entries in Triton are asked. What is recorded in FILE
is not asked again; results are appended as they come, what says most first. `page` takes the records given into the published
one and writes docs/published/zoo-cpu.md. The entries are in tests/zoo.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # when a test loads this file

import zoo_page
import zoo_rivals
from shared_out import shared_out
from zoo_records import Records, Row

from linverify.environment import environment
from linverify.plan import Plan
from linverify.session import check
from linverify.shared import Shared
from linverify.silence import Silence
from linverify.verdict import Status, TargetResult
from tests.zoo.catalogue import BUGS, CORRECT
from tests.zoo.record import Bug, Correct, Entry

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published" / "zoo-cpu.jsonl"
SEEDS = {"quick": 10, "standard": 2}
ENTRIES = {e.name: e for e in (*BUGS, *CORRECT)}


@dataclass(frozen=True, slots=True)
class Task:
    """One question.

    Attributes:
        section: runs (where are we?), bugs, correct or rivals.
        name: of the entry; of a run, when it started.
        profile, seed: of the session.
        own: whether a bug's own law is asked alone, in the smallest profile that finds it.
    """

    section: str
    name: str
    profile: str = ""
    seed: int = 0
    own: bool = False

    @property
    def key(self) -> str:
        """Of its row in the record."""
        if self.section == "correct":
            return f"{self.name} {self.profile} {self.seed}"
        # Of a run and of other rules, the name alone.
        return f"{self.name} own" if self.own else f"{self.name} {self.profile}".strip()

    @property
    def group(self) -> tuple[str, ...]:
        """Tasks of one group have references in common; a session in Triton's interpreter has a server of its own."""
        entry = ENTRIES.get(self.name, ENTRIES[BUGS[0].name])
        return (self.section, entry.operator, str(entry.triton), self.profile, str(self.seed), str(self.own))


def plan(entry: Entry, path: Path, device: str = "cpu", **changes: Any) -> Plan:
    """How an entry is checked.

    A Triton kernel is asked on a CPU in the formats that its interpreter computes rightly. All of them multiply in IEEE
    float32, but a GPU's exp is not as good, so that on a GPU those alone are held to it that have none.
    """
    dtypes = ("fp32", "fp16") if entry.triton and device == "cpu" else ("fp32", "bf16", "fp16")
    claims = {**dict(getattr(entry, "claims", ())), **({"fp32": "ieee"} if entry.kernel == "triton_delta" else {})}
    found = Plan(f"{path}::{entry.function}", entry.operator, device=device, dtypes=dtypes, claims=claims)
    return replace(found, **changes)


def asked(entry: Entry, shared: Shared, **changes: Any) -> TargetResult:
    """The result of one session, its kernel file in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (result,) = check(plan(entry, entry.write(Path(folder)), **changes), Silence(), shared)
    return result


def ask_bug(bug: Bug, shared: Shared, **changes: Any) -> Row:
    """The first violation, with the seconds from the start of the session; or what was said instead."""
    start = perf_counter()
    result = asked(bug, shared, fail_fast=True, **changes)
    found = [p for p in result.properties if p.required and p.status is Status.VIOLATION]
    row: Row = {"verdict": result.verdict, "seconds": round(perf_counter() - start, 1), "cases": result.cases}
    if found:
        assert found[0].failure is not None
        evidence, case = found[0].failure.evidence, found[0].failure.case_id
        return row | {"law": found[0].name, "result": evidence.result, "kind": evidence.kind, "case": case}
    refusals = [f"{r.kind}: {r.message}"[:200] for r in result.refusals[:3]]
    return row | {"reason": result.reason} | ({"refusals": refusals} if refusals else {})


def ask_correct(entry: Correct, shared: Shared, **changes: Any) -> Row:
    """A correct kernel under everything; each violation is a false alarm."""
    dtypes = tuple(d for d in plan(entry, Path(), **changes).dtypes if d in entry.dtypes)
    result = asked(entry, shared, dtypes=dtypes, fail_fast=True, **changes)
    alarms = [
        {"law": p.name, "case": p.failure.case_id, "diagnosis": p.failure.diagnosis, "share": p.failure.evidence.share}
        for p in result.properties
        if p.required and p.status is Status.VIOLATION and p.failure is not None
    ]
    fractions = {p.name: p.worst_budget_fraction or 0.0 for p in result.properties if p.required}
    marginal = [p.name for p in result.properties if p.status is Status.MARGINAL]
    law = max(fractions, key=fractions.__getitem__, default="")
    return {
        "verdict": result.verdict,
        **({"reason": result.reason} if result.reason else {}),
        **({"alarms": alarms} if alarms else {}),
        **({"marginal": marginal} if marginal else {}),
        "worst": round(fractions.get(law, 0.0), 3),
        "law": law,
        "cases": result.cases,
        "seconds": round(result.seconds["total"], 1),
    }


def begin(device: str, share: float) -> Callable[[Task], Row]:
    """How a process of the run works; it remembers the references of the group that it is at."""
    held: dict[tuple[str, ...], Shared] = {}

    def work(task: Task) -> Row:
        if task.section == "runs":
            return dict(environment(device))  # here: a process that has looked at the GPU cannot be forked
        entry = ENTRIES[task.name]
        if task.section == "rivals":
            return {"found": zoo_rivals.objections(entry)}
        if task.group not in held:
            held.clear()
            held[task.group] = Shared()
        shared, changes = held[task.group], {"device": device, "share": share}
        if isinstance(entry, Correct):
            return ask_correct(entry, shared, profile=task.profile, seed=task.seed, **changes)
        assert isinstance(entry, Bug)
        if not task.own:
            return ask_bug(entry, shared, profile=task.profile, **changes)
        row: Row = {}
        for profile in SEEDS:
            row = {"profile": profile} | ask_bug(entry, shared, profile=profile, properties=(entry.law,), **changes)
            if row["verdict"] == "violation":
                break
        return row

    return work


def tasks(what: str, entries: Sequence[Entry], profiles: Sequence[str]) -> Iterator[Task]:
    """The questions, those that say most first."""
    bugs, correct = ([e.name for e in entries if isinstance(e, kind)] for kind in (Bug, Correct))
    # What is right in bfloat16 alone is wrong to most other rules.
    torch_alone = [e for e in entries if not e.triton and "fp32" in getattr(e, "dtypes", ("fp32",))]
    for profile in profiles:
        if what in ("bugs", "all"):
            yield from (Task("bugs", name, profile) for name in bugs)
        if what in ("correct", "all"):
            yield from (Task("correct", n, profile, seed) for seed in range(SEEDS[profile]) for n in correct)
        if what in ("bugs", "all") and profile == profiles[0]:
            yield from (Task("bugs", name, own=True) for name in bugs)
        if what in ("rivals", "all") and profile == profiles[0]:
            yield from (Task("rivals", e.name) for e in torch_alone)


def said(task: Task, row: Row) -> str:
    """A line about a result; "" where there is nothing to look at."""
    wrong = ""
    if "error" in row:
        wrong = f"ERROR {row['error']}"
    elif task.section == "bugs" and row["verdict"] != "violation":
        wrong = f"not found: {row['verdict']} {row['reason']} {row.get('refusals', '')}"
    elif task.section == "correct" and row["verdict"] != "pass":
        wrong = f"FLAGGED: {row['verdict']} {row.get('reason', '')} {row.get('alarms', '')}"
    return f"{task.section} {task.key:48} {wrong}" if wrong else ""


def run(records: Records, wanted: Sequence[Task], given: argparse.Namespace) -> int:
    """Ask what is missing; the number of correct kernels flagged and of questions that nobody answered."""
    missing = [t for t in wanted if t.key not in records.sections[t.section]]
    missing.insert(0, Task("runs", datetime.now(UTC).isoformat(timespec="seconds")))
    share = 1.0 if given.device == "cpu" else 1.0 / given.jobs
    bad, done, start = 0, 0, perf_counter()
    work = partial(begin, given.device, share)
    for task, row in shared_out(missing, lambda t: t.group, work, jobs=given.jobs, seconds=60 * given.minutes):
        done += 1
        if "error" not in row:
            records.add(task.section, task.key, row)
        if line := said(task, row):
            bad += task.section == "correct" or "error" in row
            print(line, flush=True)
        if done % 100 == 0:
            print(f"{done} of {len(missing)} questions, {perf_counter() - start:.0f} s", flush=True)
    print(f"{done} of {len(missing)} questions asked in {perf_counter() - start:.0f} s", flush=True)
    return bad


def main() -> int:
    """Ask what is missing, or write the page; 1 where a bug is not found in any profile, or a correct kernel is flagged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bugs", "correct", "rivals", "all", "page"))
    parser.add_argument("records", nargs="*", type=Path)
    parser.add_argument("--only", default="*", help="entries whose name or kernel fits the pattern")
    parser.add_argument("--profiles", default="quick,standard")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=PUBLISHED)
    given = parser.parse_args()
    records = Records(given.out)
    if given.what == "page":
        for path in given.records:
            records.take(path.read_text(encoding="utf-8").splitlines())
        records.rewrite()
        given.out.with_suffix(".md").write_text(
            zoo_page.page(records.sections, given.out.name, given.device), encoding="utf-8"
        )
        return 0
    entries = [e for e in ENTRIES.values() if fnmatch(e.name, given.only) or fnmatch(e.kernel, given.only)]
    if given.device != "cpu":
        entries = [e for e in entries if e.triton]
    profiles = given.profiles.split(",")
    bad = run(records, list(tasks(given.what, entries, profiles)), given)
    missed = [t.name for t in entries if isinstance(t, Bug) and not zoo_page.smallest(records.sections["bugs"], t.name)]
    if missed and given.what in ("bugs", "all"):
        print(f"not found in any profile, or not asked: {', '.join(missed)}", flush=True)
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
