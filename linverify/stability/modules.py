"""Modules: a target that is an nn.Module is diagnosed in a process of its own, so that it can take nothing else down."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linverify.errors import CannotCheckError, UsageError
from linverify.stability.layers import Training
from linverify.stability.records import Curve, Finding, Stability
from linverify.target import TargetSpec

# No training run of this size takes so long; a hang does.
LIMIT = 3600.0
_LINES = 3


def module(spec: TargetSpec, settings: Mapping[str, Any], training: Training) -> Stability | None:
    """Diagnose a module; None where the target turns out to be a decorated kernel.

    Raises:
        UsageError: there is no such class or function, or it makes no module that takes (B, T, D).
        CannotCheckError: the import raises, or the process ends without an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = {
            "kind": spec.kind,
            "location": spec.location,
            "function": spec.function,
            "settings": dict(settings),
            "training": asdict(training),
            "threads": max(1, len(os.sched_getaffinity(0)) // 2),
            "path": [p for p in dict.fromkeys([*sys.path, str(Path.cwd())]) if p],
            "answer": str(answer),
        }
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        try:
            ended = subprocess.run(
                [sys.executable, "-P", "-m", "linverify.stability.module_worker"],
                input=json.dumps(request),
                text=True,
                capture_output=True,
                timeout=LIMIT,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CannotCheckError(f"{spec.text} did not end within {LIMIT:.0f} s") from None
        if not answer.is_file():
            last = "; ".join(ended.stderr.strip().splitlines()[-_LINES:])
            raise CannotCheckError(f"{spec.text} ended its process with code {ended.returncode}: {last}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        raise (UsageError if found["code"] == 2 else CannotCheckError)(f"{spec.text}: {found['error']}")
    if "kernel" in found:
        return None
    return Stability(spec.text, "", "", "", tuple(finding(f) for f in found["findings"]))


def finding(record: Mapping[str, Any]) -> Finding:
    """A finding from its record."""
    curves = tuple(
        Curve(**{**c, **{axis: tuple(c[axis]) for axis in ("x", "y", "expected")}}) for c in record["curves"]
    )
    return Finding(**{**record, "curves": curves})
