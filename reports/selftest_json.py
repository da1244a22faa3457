"""The machine record of a self-test: one JSON object, from which a later run can go on."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linverify.reports.files import write_whole
from linverify.selftest.score import MutantResult, Outcome, SelfTest, TargetScore

SCHEMA_VERSION = 1


def write(found: SelfTest, path: Path) -> None:
    """Write the record to `path`, replacing what was there in one step.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    record = dataclasses.asdict(found)
    write_whole(path, json.dumps({"schema_version": record.pop("schema_version"), **record}, indent=1) + "\n")


def read(path: Path) -> SelfTest:
    """Return the self-test that a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no record of a self-test, or one of another schema version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"expected schema version {SCHEMA_VERSION}, got {version!r}")
        return SelfTest(**{**record, "targets": tuple(_target(t) for t in record["targets"])})
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a record of a self-test: {error}") from error


def _target(record: Mapping[str, Any]) -> TargetScore:
    mutants = tuple(
        MutantResult(**{**m, "outcome": Outcome(m["outcome"]), "laws": tuple(m["laws"])}) for m in record["mutants"]
    )
    lists = {name: tuple(record[name]) for name in ("operators", "excluded")}
    return TargetScore(**{**record, **lists, "mutants": mutants})
