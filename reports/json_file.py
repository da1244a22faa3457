"""The machine record of a run: one JSON object, finite numbers only, written whole or not at all.

Infinity and NaN have no spelling in JSON; they become null.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from linverify.insight import Attribution, ErrorCloud, ErrorMap, Growth, Insight, RecipeMatch, Residual, WorstCase
from linverify.verdict import (
    BudgetUse,
    Evidence,
    Failure,
    Location,
    PropertyResult,
    Refusal,
    Report,
    Status,
    TargetResult,
)

SCHEMA_VERSION = 1
_INSIGHTS: dict[str, Callable[..., Any]] = {
    "attribution": Attribution,
    "growth": Growth,
    "recipes": RecipeMatch,
    "worst": WorstCase,
    "maps": ErrorMap,
    "clouds": ErrorCloud,
    "residuals": Residual,
}


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain dicts, lists, strings and finite numbers; schema_version comes first."""
    record = {"schema_version": report.schema_version, **dataclasses.asdict(report)}
    cleaned = _clean(record)
    assert isinstance(cleaned, dict)
    return cleaned


def from_json(record: Mapping[str, Any]) -> Report:
    """Return the report that a record was made from; a null share is read as infinite.

    Raises:
        ValueError: the record has another schema version, or is no such record.
    """
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"expected schema_version {SCHEMA_VERSION}, got {version!r}; was it written by another linverify?"
        )
    try:
        results = tuple(_target(r) for r in record["results"])
        return Report(
            record["linverify_version"], dict(record["environment"]), record["seed"], record["profile"], results
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of a linverify run: {type(error).__name__}: {error}") from error


def write(report: Report, path: Path) -> None:
    """Write the record to `path`, replacing what was there in one step.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(to_json(report), stream, indent=2, allow_nan=False, ensure_ascii=False)
            stream.write("\n")
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)  # mkstemp makes private files; a record is as readable as any other
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(v) for v in value]
    if isinstance(value, Status):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _target(r: Mapping[str, Any]) -> TargetResult:
    parts = {
        "properties": tuple(_property(p) for p in r["properties"]),
        "budget": tuple(BudgetUse(**{**u, "worst": _share(u["worst"])}) for u in r["budget"]),
        "refusals": tuple(Refusal(**x) for x in r["refusals"]),
        "notes": tuple(r["notes"]),
        "insight": _insight(r.get("insight", {})),  # records of the first days have none
    }
    return TargetResult(**{**r, **parts})


def _insight(r: Mapping[str, Any]) -> Insight:
    return Insight(
        **{n: tuple(_INSIGHTS[n](**{k: _frozen(v) for k, v in x.items()}) for x in found) for n, found in r.items()}
    )


def _frozen(value: object) -> object:
    """Lists as tuples, null among numbers as infinity."""
    if isinstance(value, list):
        return tuple(math.inf if v is None else _frozen(v) for v in value)
    return value


def _property(p: Mapping[str, Any]) -> PropertyResult:
    failure = None if p["failure"] is None else _failure(p["failure"])
    return PropertyResult(**{**p, "status": Status(p["status"]), "failure": failure})


def _failure(f: Mapping[str, Any]) -> Failure:
    evidence = Evidence(
        **{**f["evidence"], "share": _share(f["evidence"]["share"]), "how_far": _share(f["evidence"]["how_far"])}
    )
    return Failure(**{**f, "evidence": evidence, "location": Location(**f["location"])})


def _share(value: float | None) -> float:
    return math.inf if value is None else value
