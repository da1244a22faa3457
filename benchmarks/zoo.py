"""The bug zoo under linverify: which bugs are found, by which law, how soon, and which correct kernels are flagged.

    python benchmarks/zoo.py bugs [--only GLOB] [--profiles quick,standard]
    python benchmarks/zoo.py correct [--only GLOB] [--seeds 0,1] [--profiles quick]
    python benchmarks/zoo.py rivals [--only GLOB]
    python benchmarks/zoo.py page

A bug is asked twice: the law that is there for it alone, and all laws, up to the first violation; each in the smallest profile
that finds it. A correct kernel is asked everything. `rivals` asks other rules about the kernels in torch (zoo_rivals.py), and
`page` writes docs/published/zoo-cpu.md. The entries are in tests/zoo. Results accumulate in docs/published/zoo-cpu.json, where
an entry whose program has changed, or that nothing has found, is asked anew.
"""

import argparse
import ast
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))  # when a test loads this file

import zoo_page
import zoo_rivals

from linverify import processes
from linverify.plan import Plan
from linverify.session import check
from linverify.shared import Shared
from linverify.silence import Silence
from linverify.verdict import Status, TargetResult
from tests.zoo.catalogue import BUGS, CORRECT
from tests.zoo.record import Bug, Correct, Entry

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published" / "zoo-cpu.json"
Row = dict[str, Any]
E = TypeVar("E", bound=Entry)


def plan(entry: Entry, path: Path, **changes: Any) -> Plan:
    """How an entry is checked; a Triton kernel in the formats that its interpreter computes rightly."""
    dtypes = ("fp32", "fp16") if entry.triton else ("fp32", "bf16", "fp16")
    return replace(Plan(f"{path}::{entry.function}", entry.operator, dtypes=dtypes), **changes)


def asked(entry: Entry, shared: Shared, **changes: Any) -> TargetResult:
    """The result of one session, its kernel file in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (result,) = check(plan(entry, entry.write(Path(folder)), **changes), Silence(), shared)
    return result


def first_violation(result: TargetResult) -> Row | None:
    """Law and result of the first violation, None where there is none."""
    for p in result.properties:
        if p.required and p.status is Status.VIOLATION:
            assert p.failure is not None
            evidence = p.failure.evidence
            return {"law": p.name, "result": evidence.result, "kind": evidence.kind, "case": p.failure.case_id}
    return None


def search(bug: Bug, shared: Shared, profiles: Iterable[str], **changes: Any) -> Row:
    """The smallest profile that finds a bug, with what it found; seconds of that session's search."""
    last: Row = {"profile": ""}
    for profile in profiles:
        start = perf_counter()
        result = asked(bug, shared, profile=profile, fail_fast=True, **changes)
        last = {"profile": "", "verdict": result.verdict, "reason": result.reason}
        if (found := first_violation(result)) is not None:
            return {"profile": profile, "seconds": round(perf_counter() - start, 1), **found}
        if result.verdict == "unchecked" or result.refusals:
            last["refusals"] = [f"{r.kind}: {r.message}"[:200] for r in result.refusals[:3]]
    return last


def ask_bug(bug: Bug, shared: Shared, profiles: tuple[str, ...]) -> Row:
    """A bug under its own law, and under all."""
    return {
        "kind": bug.kind,
        "operator": bug.operator,
        "triton": bug.triton,
        "intended": bug.law,
        "alone": search(bug, shared, profiles, properties=(bug.law,)),
        "whole": search(bug, shared, profiles),
    }


def ask_correct(entry: Correct, shared: Shared, profile: str, seed: int) -> Row:
    """A correct kernel under everything."""
    dtypes = tuple(d for d in entry.dtypes if not entry.triton or d != "bf16")
    result = asked(entry, shared, profile=profile, seed=seed, dtypes=dtypes, claims=dict(entry.claims))
    alarms = [
        {"law": p.name, "case": p.failure.case_id, "diagnosis": p.failure.diagnosis, "share": p.failure.evidence.share}
        for p in result.properties
        if p.required and p.status is Status.VIOLATION and p.failure is not None
    ]
    worst = max((p.worst_budget_fraction or 0.0 for p in result.properties if p.required), default=0.0)
    return {
        "operator": entry.operator,
        "triton": entry.triton,
        "verdict": result.verdict,
        "reason": result.reason,
        "alarms": alarms,
        "worst": round(worst, 3),
        "cases": result.cases,
        "seconds": round(result.seconds["total"], 1),
    }


def digest(entry: Entry) -> str:
    """What an entry computes and which law is asked alone; comments and layout are no part of it."""
    said = (ast.dump(ast.parse(entry.text())), entry.function, getattr(entry, "law", ""))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


class Records:
    """Rows by entry in a JSON file, each good for one program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sections: dict[str, dict[str, Row]] = json.loads(path.read_text()) if path.exists() else {}

    def fill(self, section: str, key: str, entry: Entry, ask: Callable[[], Row]) -> Row:
        """The row under `key`, asked where it is missing or stands for another program."""
        asked_for = digest(entry)
        rows = self.sections.setdefault(section, {})
        known = rows.get(key, {})
        if known.get("digest") != asked_for or known.get("whole", {}).get("profile") == "":
            rows[key] = {"digest": asked_for, **ask()}
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(self.sections, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.path)
        return rows[key]


def run_bugs(records: Records, given: argparse.Namespace) -> int:
    """Ask the bugs that are missing; the number that is not found."""
    shared, profiles, missed = Shared(), tuple(given.profiles.split(",")), 0
    for bug in chosen(BUGS, given.only):
        row = records.fill("bugs", bug.name, bug, lambda bug=bug: ask_bug(bug, shared, profiles))
        whole, alone = row["whole"], row["alone"]
        missed += not whole["profile"]
        found = whole["profile"] or "NOT FOUND"
        said = (
            f"{whole.get('law', '')} {whole.get('result', '')} {whole.get('seconds', '')} {whole.get('refusals', '')}"
        )
        print(f"{bug.name:36} {bug.law:26} alone {alone['profile'] or '-':9} whole {found:9} {said}", flush=True)
    return missed


def run_correct(records: Records, given: argparse.Namespace) -> int:
    """Ask the correct kernels that are missing; the number that is flagged."""
    shared, profile, flagged = Shared(), given.profiles.partition(",")[0], 0
    for seed in (int(s) for s in given.seeds.split(",")):
        for entry in chosen(CORRECT, given.only):
            key = f"{entry.name} {profile} {seed}"
            row = records.fill("correct", key, entry, lambda e=entry, s=seed: ask_correct(e, shared, profile, s))
            flagged += row["verdict"] != "pass"
            said = f"{row['verdict']:9} {row['worst']} {row['seconds']} s {row['reason']} {row['alarms']}"
            print(f"{key:48} {said}", flush=True)
    return flagged


def run_rivals(records: Records, given: argparse.Namespace) -> int:
    """Ask the other rules about bugs and correct kernels in torch."""
    for entry in (e for e in chosen((*BUGS, *CORRECT), given.only) if not e.triton):
        row = records.fill("rivals", entry.name, entry, lambda e=entry: {"found": zoo_rivals.objections(e)})
        print(f"{entry.name:36} {', '.join(r for r, found in row['found'].items() if found) or '-'}", flush=True)
    return 0


def chosen(entries: Sequence[E], pattern: str) -> list[E]:
    """Entries whose name or kernel fits a pattern."""
    return [e for e in entries if fnmatch(e.name, pattern) or fnmatch(e.kernel, pattern)]


def main() -> int:
    """Ask what is missing, or write the page; 1 where a bug is not found or a correct kernel is flagged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bugs", "correct", "rivals", "page"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--profiles", default="quick,standard")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=PUBLISHED)
    given = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(given.out)
    if given.what == "page":
        given.out.with_suffix(".md").write_text(zoo_page.page(records.sections), encoding="utf-8")
        return 0
    wrong = {"bugs": run_bugs, "correct": run_correct, "rivals": run_rivals}[given.what](records, given)
    processes._close_servers()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
