"""Inline SVG for the HTML report: a canvas in fixed units, and axes.

Colours are classes, never values, so that one drawing serves light and dark; the width is about that of a phone, so that text
stays readable where the page is narrow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from markupsafe import Markup

WIDTH = 400.0
Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot that answers one question.

    Attributes:
        question: its title.
        answer: one or two sentences, which stand without the plot.
        drawing: the SVG.
        about: which result, dtype and case.
    """

    question: str
    answer: str
    drawing: Markup
    about: str = ""


@dataclass(slots=True)
class Canvas:
    """A drawing of `WIDTH` by `height` units."""

    height: float
    label: str
    _root: Element = field(init=False)

    def __post_init__(self) -> None:
        """Begin the drawing; the label is what a screen reader says."""
        size = f"0 0 {WIDTH:g} {self.height:g}"
        self._root = Element("svg", {"viewBox": size, "role": "img", "aria-label": self.label, "class": "plot"})

    def text(self, x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> None:
        """Write, with the baseline at y."""
        element = SubElement(self._root, "text", {"x": _n(x), "y": _n(y), "text-anchor": anchor, "class": kind})
        element.text = text

    def rect(self, x: float, y: float, width: float, height: float, kind: str, title: str = "") -> None:
        """Fill a rectangle; the title shows under the pointer."""
        box = {"x": _n(x), "y": _n(y), "width": _n(max(width, 0.0)), "height": _n(height), "class": kind}
        element = SubElement(self._root, "rect", box)
        if title:
            SubElement(element, "title").text = title

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line."""
        ends = {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2)}
        SubElement(self._root, "line", {**ends, "class": kind})

    def path(self, data: str, kind: str) -> None:
        """Draw a path."""
        if data:
            SubElement(self._root, "path", {"d": data, "class": kind})

    def dots(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw round dots: strokes of no length, which take a fraction of what circles do."""
        self.path("".join(f"M{_n(x)} {_n(y)}h0" for x, y in points), f"dots {kind}")

    def curve(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Join points by straight lines."""
        self.path("".join(f"{'L' if i else 'M'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points)), kind)

    def markup(self) -> Markup:
        """Return the drawing; every text in it is escaped."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))  # ElementTree escapes


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Return the map of [low, high] onto [start, end], held within it."""
    span = high - low or 1.0
    return lambda x: start + (end - start) * min(max((x - low) / span, 0.0), 1.0)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Return the same on a logarithmic axis; what is not positive lies at the low end."""
    inner = linear(math.log10(low), math.log10(high), start, end)
    return lambda x: inner(math.log10(x) if 0 < x < math.inf else (-math.inf if x <= 0 else math.inf))


def decades(values: Sequence[float], least: float = 1.0) -> tuple[float, float]:
    """Return the powers of ten around the positive finite values, at least so many decades apart."""
    known = [v for v in values if 0 < v < math.inf] or [1.0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + math.ceil(least))
    return 10.0**low, 10.0**high


def decade_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return powers of ten in [low, high], thinned to `most`."""
    first, last = round(math.log10(low)), round(math.log10(high))
    step = max(1, math.ceil((last - first) / max(most - 1, 1)))
    return [10.0**e for e in range(first, last + 1, step)]


def power(x: float) -> str:
    """Return a tick of a logarithmic axis: plain near 1, else as a power of ten."""
    exponent = round(math.log10(x))
    if -3 <= exponent <= 3:
        return f"{x:g}"
    return f"10{str(exponent).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _n(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")
