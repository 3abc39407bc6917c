"""Light drawings: SVG written element by element, for the pages that are many.

A chart of matplotlib takes 30 ms and some 20 kB; one of these, 1 ms and a fifth of that. The colours are those
of `altgrad.site.chart`, and both kinds become a file or a part of a page in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape as escape_html
from typing import Literal

from altgrad.text import figure, visible

Point = tuple[float, float]
INCH = 72.0
"""Points an inch, the unit of a drawing."""

FOREGROUND, MUTED, GRID = "#21262c", "#5c6670", "#dde1e4"


class Sketch:
    """A drawing of `width` x `height` points, y downwards, that grows by one element a call."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def svg(self) -> str:
        """The elements drawn so far, in order."""
        return "\n".join(self._parts)

    @contextmanager
    def told(self, text: str) -> Iterator[None]:
        """What is drawn inside says `text` to those who point at it."""
        self._parts.append(f"<g><title>{escape_html(visible(text))}</title>")
        yield
        self._parts.append("</g>")

    def rectangles(self, boxes: Iterable[tuple[float, float, float, float]], colour: str) -> None:
        """All boxes (left, top, right, bottom) as one filled path; nothing without boxes."""
        path = "".join(f"M{_at(x0, y0)}H{_n(x1)}V{_n(y1)}H{_n(x0)}Z" for x0, y0, x1, y1 in boxes)
        if path:
            self._parts.append(f'<path d="{path}" fill="{colour}"/>')

    def line(self, points: Iterable[Point], colour: str, width: float = 1.4, dash: str = "") -> None:
        """A line through the points; a point that is not finite breaks it. `dash` is SVG's, such as "3 2"."""
        path, pen = "", "M"
        for x, y in points:
            there = math.isfinite(x) and math.isfinite(y)
            path += f"{pen}{_at(x, y)}" if there else ""
            pen = "L" if there else "M"
        if path:
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            stroke = f'stroke="{colour}" stroke-width="{_n(width)}" stroke-linejoin="round"{dashed}'
            self._parts.append(f'<path d="{path}" fill="none" {stroke}/>')

    def area(self, points: Sequence[Point], colour: str, opacity: float = 0.18) -> None:
        """The polygon of the points, filled."""
        if points:
            path = "L".join(_at(x, y) for x, y in points)
            self._parts.append(f'<path d="M{path}Z" fill="{colour}" fill-opacity="{opacity:g}"/>')

    def ticks(self, places: Iterable[float], top: float, bottom: float, colour: str, width: float = 1.0) -> None:
        """Vertical strokes from `top` to `bottom`, as one path."""
        path = "".join(f"M{_at(x, top)}V{_n(bottom)}" for x in places)
        if path:
            self._parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="{_n(width)}"/>')

    def dots(self, points: Iterable[Point], colour: str, radius: float = 1.8) -> None:
        """A filled circle at each point."""
        self._parts += [
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{colour}"/>'
            for x, y in points
            if math.isfinite(x) and math.isfinite(y)
        ]

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = FOREGROUND,
        *,
        size: float = 9.0,
        anchor: Literal["start", "middle", "end"] = "start",
        bold: bool = False,
    ) -> None:
        """A line of text whose base line is at `y`; untrusted text is shown as it is written."""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{colour}"{place}{weight}>'
            f"{escape_html(visible(text))}</text>"
        )


@dataclass(frozen=True)
class Axis:
    """Values onto places: `low` to `high`, linear or logarithmic, onto `start` to `stop` in points."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; NaN for one that a logarithmic axis does not have."""
        low, high = self.low, self.high
        if self.log:
            if value <= 0:
                return math.nan
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (self.stop - self.start) * ((value - low) / (high - low) if high > low else 0.5)

    def marks(self, most: int = 6) -> list[float]:
        """Round values inside of the axis, at most about `most`: steps of 1, 2 or 5; powers of ten on a log axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / most))
            if last - first >= 1:
                return [10.0**power for power in range(first, last + 1, every)]
            return [self.low, self.high]
        if not self.high > self.low:
            return [self.low]
        rough = (self.high - self.low) / most
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def plot_axes(sketch: Sketch, x: Axis, y: Axis, x_label: str, y_label: str) -> None:
    """Grid, numbers and labels of a plot: its y label stands above, where a reader begins, not on its side."""
    for value in y.marks(5):
        place = y(value)
        sketch.line([(x.start, place), (x.stop, place)], GRID, 0.6)
        sketch.text(x.start - 5, place + 3, number_text(value), MUTED, anchor="end")
    for value in x.marks(7):
        sketch.text(x(value), y.start + 13, number_text(value), MUTED, anchor="middle")
    sketch.line([(x.start, y.start), (x.stop, y.start)], GRID, 0.8)
    sketch.text(x.stop, y.start + 26, x_label, MUTED, anchor="end")
    sketch.text(2, y.stop - 9, y_label, MUTED)


def number_text(value: float) -> str:
    """A tick's number: short; powers of ten far from 1 as 1e-12."""
    return figure(value, ".6g" if "e" not in f"{value:.6g}" else ".3g")


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Heights near `places`, in any order, at least `gap` apart: labels at line ends that do not cover each other."""
    moved = [float(place) for place in places]
    order = sorted(range(len(moved)), key=lambda index: moved[index])
    for lower, upper in itertools.pairwise(order):
        moved[upper] = max(moved[upper], moved[lower] + gap)
    return moved


def _n(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _at(x: float, y: float) -> str:
    return f"{_n(x)} {_n(y)}"
