"""The bug zoo under linverify: which bugs are found, by which law, how soon, and which correct kernels are flagged.

    python benchmarks/zoo.py bugs [--only GLOB] [--profiles quick,standard]
    python benchmarks/zoo.py correct [--only GLOB] [--seeds 0,1] [--profiles quick]
    python benchmarks/zoo.py table

A bug is asked twice: the law that is there for it alone, and all laws, up to the first violation; each in the smallest profile
that finds it. A correct kernel is asked everything. The entries are in tests/zoo. Results accumulate in
docs/published/zoo-cpu.json, where an entry whose text has changed is asked anew.
"""

import argparse
import ast
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
        if rows.get(key, {}).get("digest") != asked_for:
            rows[key] = {"digest": asked_for, **ask()}
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(self.sections, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.path)
        return rows[key]


def main() -> int:
    """Ask what is missing; 1 where a bug is not found or a correct kernel is flagged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bugs", "correct"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--profiles", default="quick,standard")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=PUBLISHED)
    given = parser.parse_args()
    records, shared, wrong = Records(given.out), Shared(), 0
    profiles = tuple(given.profiles.split(","))
    if given.what == "bugs":
        for bug in (b for b in BUGS if fnmatch(b.name, given.only) or fnmatch(b.kernel, given.only)):
            row = records.fill("bugs", bug.name, bug, lambda bug=bug: ask_bug(bug, shared, profiles))
            whole, alone = row["whole"], row["alone"]
            wrong += not whole["profile"]
            print(
                f"{bug.name:36} {bug.law:26} alone {alone['profile'] or '-':9}"
                f" whole {whole['profile'] or 'NOT FOUND':9} {whole.get('law', whole.get('verdict', ''))}"
                f" {whole.get('result', '')} {whole.get('seconds', '')} {whole.get('refusals', '')}",
                flush=True,
            )
    else:
        for seed in (int(s) for s in given.seeds.split(",")):
            for entry in (c for c in CORRECT if fnmatch(c.name, given.only) or fnmatch(c.kernel, given.only)):
                profile = profiles[0]
                key = f"{entry.name} {profile} {seed}"
                ask = lambda entry=entry, seed=seed, p=profile: ask_correct(entry, shared, p, seed)  # noqa: E731
                row = records.fill("correct", key, entry, ask)
                wrong += row["verdict"] != "pass"
                print(
                    f"{key:48} {row['verdict']:9} {row['worst']} {row['seconds']} s {row['reason']} {row['alarms']}",
                    flush=True,
                )
    processes._close_servers()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
