"""SARIF 2.1.0 (OASIS): one rule a property, one result a failure, at the kernel's file and line.

Code scanning shows the results in a pull request and follows each by its fingerprint, which is made of target, operator and
property, never of the case: a shrunk case may change while the fault stays. What could not be checked is a notification of the
tool, and the invocation then counts as not successful.
Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from linverify.reports._format import Format
from linverify.reports.changes import Changes
from linverify.reports.console import failure_as_text, replay_command
from linverify.reports.place import from_root, place
from linverify.reports.sentence import sentence
from linverify.reports.text import words
from linverify.verdict import PropertyResult, Report, Status, TargetResult

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "SRCROOT"
_WIDTH = 100


def sarif(report: Report, changes: Changes | None = None) -> str:
    """Return the log; with `changes`, results carry their baseline state (new or unchanged)."""
    laws = {p.name: report.laws.get(p.name, "") for r in report.results for p in r.properties if p.failure}
    rules = [_rule(name, law) for name, law in laws.items()]
    run = {
        "tool": {
            "driver": {
                "name": "linverify",
                "version": report.linverify_version,
                "semanticVersion": report.linverify_version,
                "rules": rules,
            }
        },
        "invocations": [_invocation(report)],
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(report, r, p, [*laws].index(p.name), changes)
            for r in report.results
            for p in r.properties
            if p.failure is not None
        ],
        "properties": {
            "environment": dict(report.environment),
            "seed": report.seed,
            "profile": report.profile,
            "verdicts": {f"{r.target} ({r.operator})": r.verdict for r in report.results},
        },
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _rule(name: str, law: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": name, "name": "".join(part.capitalize() for part in name.split("_"))}
    if law:
        rule["shortDescription"] = {"text": law}
    rule["help"] = {"text": f"linverify explain {name}", "markdown": f"`linverify explain {name}`"}
    return rule


def _invocation(report: Report) -> dict[str, Any]:
    """Return how the run ended; a target that could not be checked is an error of the tool, not a finding."""
    notifications = [
        {
            "level": "error",
            "message": {"text": f"{r.target} ({r.operator or 'no operator'}) could not be checked: {r.reason}"},
            **_locations(r),
        }
        for r in report.results
        if r.verdict == "unchecked"
    ]
    found: dict[str, Any] = {
        "executionSuccessful": not notifications and bool(report.results),
        "exitCode": report.exit_code,
    }
    if report.started:
        found["startTimeUtc"] = report.started.replace("+00:00", "Z")
    return {**found, "toolExecutionNotifications": notifications}


def _result(
    report: Report, result: TargetResult, found: PropertyResult, rule: int, changes: Changes | None
) -> dict[str, Any]:
    failure = found.failure
    assert failure is not None
    e = failure.evidence
    record: dict[str, Any] = {
        "ruleId": found.name,
        "ruleIndex": rule,
        "level": _level(found),
        "message": {
            "text": f"{words(found.name)}: {sentence(found)}",
            "markdown": f"**{words(found.name)}** of `{result.target}` ({result.operator}): {sentence(found)}\n\n"
            f"```\n{failure_as_text(result, found, replay_options=report.replay_options, width=_WIDTH)}\n```",
        },
        **_locations(result),
        "partialFingerprints": {"linverify/v1": _fingerprint(result, found)},
        "properties": {
            "target": result.target,
            "operator": result.operator,
            "required": found.required,
            "status": str(found.status),
            "case_id": failure.case_id,
            "sizes": dict(failure.sizes),
            "share_of_the_budget": e.share if math.isfinite(e.share) else None,
            "largest_error": e.how_far if math.isfinite(e.how_far) else None,
            "replay": replay_command(result, found, report.replay_options),
        },
    }
    if failure.reproducer:
        record["attachments"] = [
            {"description": {"text": "stand-alone reproducer"}, "artifactLocation": _artifact(failure.reproducer)}
        ]
    if changes is not None:
        record["baselineState"] = "new" if changes.is_new(result, found) else "unchanged"
    return record


def _level(found: PropertyResult) -> str:
    if found.status is Status.VIOLATION:
        return "error" if found.required else "note"
    return "warning" if found.status is Status.MARGINAL else "note"


def _locations(result: TargetResult) -> dict[str, Any]:
    return {"locations": list(_location(result))}


def _location(result: TargetResult) -> Iterator[dict[str, Any]]:
    file, line = place(result)
    name = result.target.rpartition(":")[2] or result.target
    found: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": result.target, "name": name}]}
    if file:
        found["physicalLocation"] = {"artifactLocation": _artifact(file), "region": {"startLine": line}}
    yield found


def _artifact(file: str) -> dict[str, str]:
    inside = from_root(file)
    if inside is None:
        return {"uri": Path(file).resolve().as_uri()}
    return {"uri": quote(inside), "uriBaseId": _ROOT}


def _fingerprint(result: TargetResult, found: PropertyResult) -> str:
    return hashlib.sha256(f"{result.target}\n{result.operator}\n{found.name}".encode()).hexdigest()


FORMAT = Format("sarif", "Write SARIF 2.1.0 for code scanning.", sarif)
