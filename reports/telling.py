"""Which failures to tell in full: one fault breaks many laws, and most of them say the same."""

from collections.abc import Sequence

from linverify.verdict import PropertyResult, Status

_FULL = 3


def telling(found: Sequence[PropertyResult]) -> tuple[list[PropertyResult], list[PropertyResult]]:
    """Return the failures to tell in full, and the rest, each in the order to show them.

    In full: the first of the laws that decide, the first of every other kind of evidence (a value, a shared memory, a
    crash), and one that holds more results to the reference than those do: what is right narrows down what is wrong.
    """
    failed = [p for p in found if p.failure is not None]
    failed.sort(key=lambda p: (p.status is Status.REPORTED, p.status is not Status.VIOLATION))
    full: list[PropertyResult] = []
    for one in (p for p in failed if p.status is not Status.REPORTED):
        if len(full) < _FULL and (_kind(one) not in {_kind(p) for p in full} or _width(one) > max(map(_width, full))):
            full.append(one)
    return full, [p for p in failed if p not in full]


def alike(one: PropertyResult, full: Sequence[PropertyResult]) -> bool:
    """Return whether a failure says no more than those told in full: the same results are wrong."""
    wrong = set(one.failure.wrong) if one.failure else set()
    known = {name for p in full if p.failure for name in p.failure.wrong}
    return bool(wrong) and wrong <= known and one.status in {p.status for p in full}


def _kind(found: PropertyResult) -> tuple[str, str]:
    assert found.failure is not None
    return found.status, found.failure.evidence.kind


def _width(found: PropertyResult) -> int:
    assert found.failure is not None
    return len(found.failure.wrong) + len(found.failure.right)
