"""From property results to a target's verdict: a pass needs every required property to have been asked."""

from collections.abc import Sequence

from linverify.verdict import PropertyResult, Status


def conclude(results: Sequence[PropertyResult]) -> tuple[str, str]:
    """Return the verdict (pass, violation or unchecked) and, for unchecked, one sentence of reason."""
    required = [r for r in results if r.required]
    if any(r.status is Status.VIOLATION for r in required):
        return "violation", ""
    unasked = [r for r in required if r.status is Status.UNCHECKED]
    if unasked:
        return "unchecked", f"{unasked[0].name} was not checked: {unasked[0].note}"
    judged = [r for r in results if r.cases]
    if not judged:
        refused = [r for r in results if r.status is Status.REFUSED]
        return "unchecked", "the target refused every case" if refused else "no property could be asked"
    return "pass", ""
