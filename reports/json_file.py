"""The machine record of a run: one JSON object of finite numbers.

Infinity and NaN have no spelling in JSON; they become null. Keys are those of the records in `linverify.verdict`; `schema.json`
beside this file describes them, and says what later versions may change.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

from linverify.reports._format import Format
from linverify.reports.files import write_whole
from linverify.verdict import PropertyResult, Report

SCHEMA_VERSION = 1
# A list without strings, lists or objects in it. A line break never stands in a string, so none is taken for such a list.
_NUMBERS = re.compile(r'\[\n\s+([^\[\]{}"]*?)\n\s+\]')
_NUMERIC = ("wrong_value", "not_finite")  # kinds of evidence that a budget judges


def schema() -> str:
    """Return the JSON Schema (draft 2020-12) of the record, as text."""
    return files("linverify.reports").joinpath("schema.json").read_text(encoding="utf-8")


def json_text(report: Report) -> str:
    """Return the record as text, one entry a line, but the numbers of a list together on one."""
    text = json.dumps(to_json(report), indent=2, allow_nan=False, ensure_ascii=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def write(report: Report, path: Path) -> None:
    """Write the record to `path`, replacing what was there in one step.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    write_whole(path, json_text(report))


def read(path: Path) -> Report:
    """Return the report that a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record of a run.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {record!r:.60}")
    return from_json(record)


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain dicts, lists, strings and finite numbers; schema_version comes first."""
    record = {"schema_version": report.schema_version, **dataclasses.asdict(report)}
    cleaned = _clean(record)
    assert isinstance(cleaned, dict)
    return cleaned


def from_json(record: Mapping[str, Any]) -> Report:
    """Return the report that a record was made from; null for a number is read as infinity, unknown keys are left out.

    Raises:
        ValueError: the record has another schema version, or is no such record.
    """
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"expected schema_version {SCHEMA_VERSION}, got {version!r}; was it written by another linverify?"
        )
    try:
        built = _built(Report, record)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a record of a linverify run: {error}") from error
    assert isinstance(built, Report)
    return built


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(v) for v in value]
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def _built(kind: Any, value: Any) -> Any:
    """Return `value` as the type that a field's annotation names."""
    if kind is PropertyResult:
        value = _with_infinite_share(_mapping(value, kind))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        given = {n: _built(hint, value[n]) for n, hint in hints.items() if n in _mapping(value, kind)}
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in given and _needed(f)]
        if missing:
            raise TypeError(f"{getattr(kind, '__name__', kind)} without {', '.join(missing)}")
        return typing.cast("Any", kind)(**given)
    if origin is types.UnionType:
        return None if value is None else _built(arguments[0], value)
    if origin is tuple:
        return tuple(_built(arguments[0], item) for item in _list(value))
    if origin is Mapping:
        return {key: _built(arguments[1], item) for key, item in _mapping(value, kind).items()}
    if kind is float:
        return math.inf if value is None else float(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.60}")
    return value


def _with_infinite_share(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record in which null no longer stands for infinity: a failure that is beyond every budget tells them apart."""
    failure = found.get("failure")
    evidence = failure.get("evidence") if isinstance(failure, Mapping) else None
    numeric = isinstance(evidence, Mapping) and evidence.get("kind") in _NUMERIC and evidence.get("share") is None
    return {**found, "worst_budget_fraction": math.inf} if numeric else found


def _mapping(value: Any, kind: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected {getattr(kind, '__name__', kind)}, got {value!r:.60}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {value!r:.60}")
    return value


def _needed(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


FORMAT = Format("json", "Write the whole run to this file.", lambda report, _: json_text(report))
