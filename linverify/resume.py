"""Resuming: what an interrupted run judged is taken over, and only the rest is asked.

A record can be resumed by the same linverify, with the same options and the same kernel file; anything else would mix verdicts
about different things.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import linverify
from linverify import registry
from linverify.errors import UsageError
from linverify.plan import Plan
from linverify.target import parse
from linverify.verdict import Configuration, PropertyResult, Report, Status

_JUDGED = (Status.PASS, Status.VIOLATION, Status.MARGINAL, Status.REPORTED, Status.REFUSED)
_PLAN = "plan"

Known = Mapping[str, tuple[PropertyResult, ...]]


def marks(plans: Sequence[Plan]) -> dict[str, str]:
    """What a record must say so that a later run can tell whether it may go on from there; entries of its environment."""
    found = {_PLAN: _digest(json.dumps(_options(plans[0]), sort_keys=True, default=str).encode())}
    for plan in plans:
        spec = parse(plan.target)
        if spec.kind == "file" and Path(spec.location).is_file():
            found[f"source of {Path(spec.location).name}"] = _digest(Path(spec.location).read_bytes())
    return found


def known(report: Report, plans: Sequence[Plan], name: str) -> Known:
    """Return what a record holds that need not be asked again: results of properties by target.

    Args:
        report: of the interrupted run.
        plans: what is asked now.
        name: of the record, for messages.

    Raises:
        UsageError: it was made by another linverify, with other options, or of another kernel.
    """
    if report.linverify_version != linverify.__version__:
        raise UsageError(
            f"--resume {name}: made by linverify {report.linverify_version}, this is {linverify.__version__}; start afresh"
        )
    for key, now in marks(plans).items():
        before = report.environment.get(key)
        if before != now:
            what = "other options" if key == _PLAN else f"another {key.removeprefix('source of ')}"
            raise UsageError(f"--resume {name}: that run had {what}; repeat its options, or start afresh")
    # a law that lists what it finds goes on after what is listed
    lists = {law.name for law in registry.properties().values() if law.lists}
    judged = {
        r.target: tuple(p for p in r.properties if p.status in _JUDGED and p.name not in lists)
        for r in report.results
        if r.properties
    }
    return {target: results for target, results in judged.items() if results}


def swept(report: Report) -> Mapping[str, tuple[Configuration, ...]]:
    """Return the autotuning configurations that a record settled, by target; a sweep goes on after them."""
    return {r.target: r.configurations for r in report.results if r.configurations}


def _options(plan: Plan) -> dict[str, object]:
    """Everything that decides which cases are asked and how they are judged; not which laws, so that more may be asked."""
    names = ("operator", "operator_parameters", "settings", "claims", "device", "dtypes", "require", "profile", "seed")
    return {name: getattr(plan, name) for name in (*names, "autotune")}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
