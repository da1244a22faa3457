"""Does every element stay below what is allowed for it?"""

import math

from linverify.insight import ErrorCloud
from linverify.reports.svg import WIDTH, Canvas, Figure, decade_ticks, decades, logarithmic, power
from linverify.reports.text import counted, share

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 260.0, 46.0, 14.0, 14.0, 34.0
_POINTS = 1500
_DECADES = 9


def plot_cloud(found: ErrorCloud) -> Figure:
    """Return error against what is allowed, one dot an element; dots above the diagonal are beyond the line."""
    pairs = list(zip(found.allowed, found.errors, strict=False))
    worst = sorted(pairs, key=lambda p: -_used(*p))
    kept = worst[: _POINTS // 3] + worst[_POINTS // 3 :: max(1, len(pairs) // _POINTS)]
    low_x, high_x = decades([a for a, _ in kept])
    low_y, high_y = decades([e for _, e in kept] + [high_x])
    low_y = max(low_y, high_y * 10.0**-_DECADES)
    canvas = Canvas(_HEIGHT, f"error of {found.result} against what is allowed")
    x = logarithmic(low_x, high_x, _LEFT, WIDTH - _RIGHT)
    y = logarithmic(low_y, high_y, _HEIGHT - _BOTTOM, _TOP)
    for tick in decade_ticks(low_x, high_x):
        canvas.line(x(tick), _TOP, x(tick), _HEIGHT - _BOTTOM, "grid")
        canvas.text(x(tick), _HEIGHT - _BOTTOM + 15, power(tick), "tick", anchor="middle")
    for tick in decade_ticks(low_y, high_y):
        canvas.line(_LEFT, y(tick), WIDTH - _RIGHT, y(tick), "grid")
        canvas.text(_LEFT - 6, y(tick) + 4, power(tick), "tick", anchor="end")
    canvas.text(WIDTH - _RIGHT, _HEIGHT - 4, "allowed", "tick", anchor="end")
    canvas.text(_LEFT, _HEIGHT - 4, "error (up)", "tick")
    held = [(x(a), y(e)) for a, e in kept if _used(a, e) <= 1]
    beyond = [(x(a), y(e)) for a, e in kept if _used(a, e) > 1]
    canvas.dots(held, "good")
    canvas.dots(beyond, "bad")
    ends = [v for v in (max(low_x, low_y), min(high_x, high_y)) if v]
    canvas.curve([(x(v), y(v)) for v in ends], "limit")
    canvas.text(x(ends[1]) - 6, y(ends[1]) + 14, "the line", "tick", anchor="end")
    count, used = sum(_used(a, e) > 1 for a, e in pairs), max((_used(a, e) for a, e in pairs), default=0.0)
    answer = (
        f"{count} of {counted(len(pairs), 'sampled element')} beyond the line; the worst uses {share(used)} of its budget."
        if count
        else f"All {counted(len(pairs), 'sampled element')} do; the worst uses {share(used)} of its budget."
    )
    about = f"{found.result}, {found.dtype}, {found.case_id}"
    return Figure("Does every element stay below what is allowed for it?", answer, canvas.markup(), about)


def _used(allowed: float, error: float) -> float:
    if math.isnan(error):
        return math.inf
    return error / allowed if allowed > 0 else (0.0 if error == 0 else math.inf)
