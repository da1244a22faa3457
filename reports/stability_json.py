"""Stability as one JSON object of finite numbers; infinity and NaN become null, as in the record of a check.

Keys are those of ``linverify.stability.records``; `stability_schema.json` beside this file describes them, and says what later
versions may change.
"""

import dataclasses
import json
import math
from importlib.resources import files
from typing import Any

from linverify.stability.records import StabilityReport


def schema() -> str:
    """Return the JSON Schema (draft 2020-12) of the record, as text."""
    return files("linverify.reports").joinpath("stability_schema.json").read_text(encoding="utf-8")


def json_text(report: StabilityReport) -> str:
    """Return the record as text."""
    return json.dumps(to_json(report), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def to_json(report: StabilityReport) -> dict[str, Any]:
    """Return the report as plain dicts, lists, strings and finite numbers, with its verdicts; schema_version comes first."""
    record = _finite({"schema_version": report.schema_version, **dataclasses.asdict(report)})
    for result, plain in zip(report.results, record["results"], strict=True):
        plain["verdict"] = result.verdict
    return {**record, "exit_code": report.exit_code}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
