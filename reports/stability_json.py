"""Stability as one JSON object of finite numbers; infinity and NaN become null, as in the record of a check."""

import dataclasses
import json
import math
from typing import Any

from linverify.stability.records import StabilityReport


def json_text(report: StabilityReport) -> str:
    """Return the record as text; keys are those of ``linverify.stability.records``, and each result's verdict."""
    record = _finite(dataclasses.asdict(report))
    for result, plain in zip(report.results, record["results"], strict=True):
        plain["verdict"] = result.verdict
    record["exit_code"] = report.exit_code
    return json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
