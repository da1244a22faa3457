"""How does a gradient go as its divisor shrinks, layer by layer, or over the tokens?"""

import math
from collections.abc import Callable

from linverify.reports.svg import WIDTH, Canvas, Figure, decade_ticks, decades, linear, logarithmic, power
from linverify.reports.text import number
from linverify.stability.records import Curve, Finding

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 220.0, 46.0, 14.0, 14.0, 34.0
_QUESTIONS = {
    "D2": "Does a weight's derivative grow as scores vanish?",
    "D4": "Does the gradient grow as what it divides by vanishes?",
    "D5": "Do the layers' gradients match?",
    "D6": "How near are the tokens that count?",
}
_MOST = 5


def plot_stability(found: Finding) -> list[Figure]:
    """Return a figure for every curve of a finding."""
    return [_figure(found, curve) for curve in found.curves if len(curve.x) > 1]


def _figure(found: Finding, curve: Curve) -> Figure:
    canvas = Canvas(_HEIGHT, f"{curve.y_name} against {curve.x_name}")
    points = [(a, b) for a, b in zip(curve.x, curve.y, strict=True) if 0 < a < math.inf and 0 < b < math.inf]
    if points:
        _draw(canvas, points, curve)
    about = " · ".join(part for part in (f"{found.diagnostic} {found.name}", curve.label, found.dtype) if part)
    return Figure(_QUESTIONS.get(found.diagnostic, found.name), found.sentence, canvas.markup(), about)


def _draw(canvas: Canvas, points: list[tuple[float, float]], curve: Curve) -> None:
    xs, ys = [a for a, _ in points], [b for _, b in points]
    x, y = (_linear if curve.linear else _logarithmic)(canvas, xs, [*ys, *curve.expected])
    canvas.text(WIDTH - _RIGHT, _HEIGHT - 4, curve.x_name, "tick", anchor="end")
    canvas.text(_LEFT, _HEIGHT - 4, curve.y_name, "tick")
    if curve.expected:
        canvas.curve([(x(a), y(b)) for a, b in zip(curve.x, curve.expected, strict=False)], "curve expected")
    canvas.curve([(x(a), y(b)) for a, b in points], "curve measured")
    canvas.dots([(x(a), y(b)) for a, b in points], "measured")
    if curve.mark is not None:
        at = x(curve.mark)
        canvas.line(at, _TOP, at, _HEIGHT - _BOTTOM, "limit")
        canvas.text(at + 4, _HEIGHT - _BOTTOM - 6, f"{curve.x_name} = {number(curve.mark)}", "tick")


_Scales = tuple[Callable[[float], float], Callable[[float], float]]


def _logarithmic(canvas: Canvas, xs: list[float], ys: list[float]) -> _Scales:
    left, right = decades(xs)
    low, high = decades(ys)
    x = logarithmic(left, right, _LEFT, WIDTH - _RIGHT)
    y = logarithmic(low, high, _HEIGHT - _BOTTOM, _TOP)
    for tick in decade_ticks(low, high):
        _across(canvas, y(tick), power(tick))
    for tick in decade_ticks(left, right):
        canvas.text(x(tick), _HEIGHT - _BOTTOM + 15, power(tick), "tick", anchor="middle")
    return x, y


def _linear(canvas: Canvas, xs: list[float], ys: list[float]) -> _Scales:
    x = linear(0.0, max(xs), _LEFT, WIDTH - _RIGHT)
    y = linear(0.0, max(ys), _HEIGHT - _BOTTOM, _TOP)
    for part in range(_MOST):
        _across(canvas, y(max(ys) * part / (_MOST - 1)), number(max(ys) * part / (_MOST - 1)))
        canvas.text(
            x(max(xs) * part / (_MOST - 1)), _HEIGHT - _BOTTOM + 15, number(max(xs) * part / (_MOST - 1)), "tick"
        )
    return x, y


def _across(canvas: Canvas, at: float, text: str) -> None:
    canvas.line(_LEFT, at, WIDTH - _RIGHT, at, "grid")
    canvas.text(_LEFT - 6, at + 4, text, "tick", anchor="end")
