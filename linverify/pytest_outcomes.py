"""What a conformance item's result is to pytest: passed, failed or skipped, and the text that says why.

The law held: passed. A required law is broken or could not be judged: failed. The kernel does not offer what the law asks for,
or the law is reported and not required: skipped, with the reason.
"""

import shlex
from typing import NoReturn

import pytest

from linverify.plan import Plan
from linverify.verdict import PropertyResult, Status, TargetResult

# The law that asks every kind of case: a kernel that refuses all of it could not be checked at all.
BASIS = "agreement"


def recorded(found: PropertyResult) -> list[tuple[str, object]]:
    """Return what JUnit XML and other plugins may want to know: user properties of the item."""
    facts: list[tuple[str, object]] = [("linverify_status", str(found.status)), ("linverify_cases", found.cases)]
    if found.worst_budget_fraction is not None:
        facts.append(("linverify_worst_budget_fraction", found.worst_budget_fraction))
    if found.failure is not None:
        facts.append(("linverify_case_id", found.failure.case_id))
    return facts


def replay_options(plan: Plan) -> str:
    """Return what a replay of one of the plan's cases must repeat."""
    words = [word for name, value in plan.settings.items() for word in ("--set", f"{name}={value!r}")]
    words += [word for name, value in plan.claims.items() for word in ("--claims", f"{name}={value}")]
    return shlex.join([*words, "--device", plan.device])


def settle(result: TargetResult, found: PropertyResult, options: str) -> None:
    """Return where the law held; raise pytest's failure or skip otherwise.

    Args:
        result: of the target.
        found: the law's part of it.
        options: what a replay must repeat.
    """
    __tracebackhide__ = True
    note = found.note or result.reason or "no reason was given"
    if found.status in (Status.NOT_OFFERED, Status.NOT_APPLICABLE):
        pytest.skip(f"{found.status.replace('_', ' ')}: {note}")
    if found.status is Status.REFUSED and found.name != BASIS:
        pytest.skip(f"refused: {note}{_refusals(result)}")
    if found.status in (Status.REFUSED, Status.UNCHECKED):
        _fail_or_skip(found, f"{found.name} could not be checked: {note}{_refusals(result)}")
    if found.status in (Status.VIOLATION, Status.REPORTED):
        from linverify.reports.console import failure_as_text

        text = failure_as_text(result, found, replay_options=options)
        if found.failure is not None:
            kept = f'cases={{"{found.name}": ["{found.failure.case_id}"]}}'
            text += f"\nkeep         linverify.conformance(..., {kept})"
        _fail_or_skip(found, text)


def _refusals(result: TargetResult) -> str:
    return "".join(f"; {r.kind}: {r.message} (smallest case {r.case_id})" for r in result.refusals)


def _fail_or_skip(found: PropertyResult, text: str) -> NoReturn:
    __tracebackhide__ = True
    if found.required:
        pytest.fail(text, pytrace=False)
    pytest.skip(f"reported, not required: {text}")
