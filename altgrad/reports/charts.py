"""The kinds of chart that reports have; each is drawn, and put into words, by one function from the same columns."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import format_order
from altgrad.reports.format_styles import distinct_styles, format_style
from altgrad.site import BACKGROUND, FOREGROUND, GRID, MUTED, PALETTE, Axis, Chart, tell
from altgrad.site.sketch import INCH, Sketch, number_text, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import PathPatch

MAKES_FOR_OTHERS = True
"""The source of a chart made here is the function that asked for it."""

LINEAR_TO = 0.05
"""A chart of gaps is linear up to here: the close formats must be readable beside E7M0."""
NARROW, NARROW_LINE = 266.0, 52
"""How wide a narrow chart is, in points, and how long a line of its text: with letters of 12 px it fits a telephone."""
SIDE = 0.15
"""The margins left and right of such a chart's axis, in inches."""
GAP_TICKS = (-0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


def forest(
    identity: str,
    title: str,
    description: str,
    data: pd.DataFrame,
    rows: Sequence[str],
    axis: str,
    colours: Sequence[str] = (),
    figures: bool = True,
    ends: tuple[float, float] | None = None,
) -> Chart:
    """Paired differences with their intervals, one below the other.

    Args:
        description: for those who cannot see it; every row's figures are added.
        data: a row each, with finite columns difference, low, high and n_pairs, and `counted` where there is more to
            say of how many runs it is.
        rows: the name of each.
        axis: what the differences are, and their unit.
        colours: of each; else all have the first.
        figures: False where a table of the page has them for those who cannot see it.
        ends: of an axis that several charts share, which then are as narrow as a telephone, with names above.
    """
    labels = [f"{name} ({count})" for name, count in zip(rows, _counts(data), strict=True)]
    said = _differences(rows, data)

    def draw(axes: Axes) -> None:
        places = range(len(data))
        axes.axvline(0, color=FOREGROUND, linewidth=1)
        drawn = zip(places, colours or itertools.repeat(PALETTE[0]), data.itertuples(), said, strict=False)
        for place, colour, row, text in drawn:
            tell(text, axes.hlines([place], [row.low], [row.high], color=colour, linewidth=2))
            tell(text, *axes.plot([row.difference], [place], "o", color=colour, markersize=6))
        if ends:
            axes.set_xlim(*ends)
            marks = _narrow_marks(*ends)
            axes.set_xticks(marks, [number_text(mark) for mark in marks])
            axes.set_yticks([])
            for place, label in zip(places, labels, strict=True):
                across = axes.get_yaxis_transform()
                ground = {"facecolor": BACKGROUND, "edgecolor": "none", "pad": 1}  # else zero's line is in the name
                axes.text(
                    0.01, place - 0.2, label, color=FOREGROUND, transform=across, va="bottom", fontsize=9, bbox=ground
                )
        else:
            axes.set_yticks(places, labels, color=FOREGROUND)
        axes.set_ylim(len(data) - 0.4, -1 if ends else -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(axis)

    about = f"{description} {'; '.join(said)}.".lstrip() if figures else description
    if ends:
        high = 0.4 * len(data) + 0.7
        return Chart(
            identity, title, about, data, draw, width=NARROW / INCH, height=high, margins=(SIDE, SIDE, 0.5, 0.1)
        )
    margins = (0.35 + 0.062 * max(map(len, labels)), 0.15, 0.5, 0.1)
    return Chart(identity, title, about, data, draw, height=0.28 * len(data) + 0.7, margins=margins)


def _narrow_marks(low: float, high: float) -> list[float]:
    """Round values on the axis of a narrow chart, as many as have room for their numbers."""
    axis, letter, found = Axis(low, high, SIDE * INCH, NARROW - SIDE * INCH), 5.8, list[float]()
    for most in range(6, 0, -1):
        halves = {mark: letter * len(number_text(mark)) / 2 for mark in axis.marks(most)}
        found = [mark for mark, half in halves.items() if half <= axis(mark) <= NARROW - half]
        if all(axis(two) - axis(one) > halves[one] + halves[two] + letter for one, two in itertools.pairwise(found)):
            break
    return found


def grouped_narrow_forest(
    identity: str,
    data: pd.DataFrame,
    rows: Sequence[str],
    groups: Mapping[str, tuple[str, str]],
    axis: str,
    margin: float,
    widest: float,
) -> Chart:
    """Paired differences, each below its name, in groups: as narrow as a telephone, which shows it whole.

    Args:
        data: a row each, with finite columns difference, low, high and n_pairs, and `group`, a key of `groups`.
        rows: the name of each.
        groups: the title and the colour of each, in order.
        axis: what the differences are, and their unit.
        margin: half the width of a grey band around zero.
        widest: where the axis ends, on a scale that shows 0.005 and 0.5 alike; beyond it an arrow with the figure.
    """
    names, said = [textwrap.wrap(name, NARROW_LINE) for name in rows], _differences(rows, data)
    middle, half = NARROW / 2, NARROW / 2 - 12
    shown = {group: [at for at, each in enumerate(data["group"]) if each == group] for group in groups}
    shown = {group: found for group, found in shown.items() if found}
    height = 18 * len(shown) + sum(13 + 11 * len(lines) for lines in names) + 40

    def across(value: float) -> float:
        ends = np.arcsinh(np.clip(value, -widest, widest) / margin) / np.arcsinh(widest / margin)
        return float(middle + half * ends)

    def mark(sketch: Sketch, row: pd.Series, at: float, colour: str) -> None:
        if abs(row["difference"]) <= widest:
            sketch.line([(across(row["low"]), at), (across(row["high"]), at)], colour, 2)
            sketch.dots([(across(row["difference"]), at)], colour, 3.2)
            return
        sign = 1 if row["difference"] > 0 else -1
        tip, figure = middle + sign * (half + 8), words.number(row["difference"], sign=True)
        sketch.area([(tip, at), (tip - 9 * sign, at - 4), (tip - 9 * sign, at + 4)], colour, 1)
        sketch.text(tip - 13 * sign, at + 4, figure, colour, anchor="end" if sign > 0 else "start")

    def draw(sketch: Sketch) -> None:
        bottom = height - 34.0
        sketch.rectangles([(across(-margin), 0, across(margin), bottom)], GRID)
        place = 0.0
        for group, found in shown.items():
            label, colour = groups[group]
            sketch.text(4, place + 12, label, colour, bold=True)
            place += 18
            for at in found:
                if at != found[0]:  # so that a name goes with the interval below it
                    sketch.line([(4, place - 2), (NARROW - 4, place - 2)], GRID, 0.8)
                for line in names[at]:
                    sketch.text(4, place + 8, line)
                    place += 11
                sketch.line([(middle, place - 1), (middle, place + 9)], FOREGROUND, 1)
                with sketch.told(said[at]):
                    mark(sketch, data.iloc[at], place + 4, colour)
                place += 13
        for tick in (-0.5, -0.1, -0.02, 0, 0.02, 0.1, 0.5):
            sketch.line([(across(tick), bottom), (across(tick), bottom + 4)], MUTED, 0.8)
            sketch.text(across(tick), bottom + 14, number_text(tick), MUTED, anchor="middle")
        sketch.text(middle, bottom + 29, axis, MUTED, anchor="middle")

    return Chart(identity, "", f"{'; '.join(said)}.", data, sketch=draw, width=NARROW / INCH, height=height / INCH)


def _differences(rows: Sequence[str], data: pd.DataFrame) -> list[str]:
    """Named differences in words."""
    return [
        f"{name}: {words.number(row.difference, sign=True)} {words.interval(row.low, row.high)}, {count}"
        for name, row, count in zip(rows, data.itertuples(), _counts(data), strict=True)
    ]


def _counts(data: pd.DataFrame) -> list[str]:
    """Of how many pairs each difference is."""
    return [*(data["counted"] if "counted" in data else "n = " + data["n_pairs"].astype(str))]


def gaps(identity: str, title: str, data: pd.DataFrame) -> Chart:
    """Paired gaps to FP32 by format with their intervals and figures, on a scale that shows 0.002 and 0.7 alike.

    Args:
        data: a row each, with columns format, n_pairs, gap, low, high, in the order in which they are told.
    """

    def draw(axes: Axes) -> None:
        reference_line(axes)
        places = range(len(data))
        _intervals(axes, places, data, said)
        for place, gap, high in zip(places, data["gap"], data["high"].fillna(data["gap"]), strict=True):
            text = words.number(gap, sign=True)
            _label(axes, text, (place, high), (0, 7), ha="center")
        _gap_axis(axes, data)
        axes.margins(y=0.12)
        axes.set_xticks(range(len(data)), [f"{row['format']}\nn = {row['n_pairs']}" for _, row in data.iterrows()])
        axes.set_xlim(-0.6, len(data) - 0.4)

    data = data.reset_index(drop=True)
    said = [
        f"{row.format} {words.number(row.gap, sign=True)} {words.interval(row.low, row.high)}, n = {row.n_pairs}"
        for row in data.itertuples()
    ]
    return Chart(identity, title, f"{'; '.join(said)}.", data, draw, height=3.1)


def gaps_against(
    identity: str, title: str, data: pd.DataFrame, over: Mapping[str, tuple[str, Callable[[float], str]]]
) -> Chart:
    """Paired gaps to FP32 with their intervals over other figures of each format, a panel a figure, each with its name.

    Args:
        data: a row each, with columns format, gap, low and high, all but the first finite; a panel leaves out what has
            no figure.
        over: the columns of the figures: what each is called, and how it is written.
    """
    scales = {
        column: Axis(low - 0.12 * (high - low), high + 0.22 * (high - low), 1.06 * at, 1.06 * at + 1)
        for at, column in enumerate(over)
        for low, high in [(float(data[column].min()), float(data[column].max()))]
    }

    def draw(axes: Axes) -> None:
        reference_line(axes)
        _gap_axis(axes, data)
        panel_axes(axes, [f"over the {axis}" for axis, _ in over.values()], [])
        for column, scale in scales.items():
            marks = [mark for mark in scale.marks(5) if mark >= 0]
            for mark in marks:
                axes.axvline(scale(mark), color=GRID, linewidth=0.6)
                below = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "top", "color": MUTED}
                _label(axes, over[column][1](mark), (scale(mark), 0), (0, -5), **below)
            drawn = data[["format", column, "gap", "low", "high"]].assign(said=said).dropna()
            at = drawn[column].map(scale)
            _intervals(axes, at, drawn, list(drawn["said"]))
            for name, x, gap in zip(drawn["format"], at, drawn["gap"], strict=True):
                _label(axes, name, (x, gap), (7, 3))
        axes.margins(y=0.12)

    said = [
        f"{row['format']}: gap {words.number(row['gap'], sign=True)}, "
        + ", ".join(f"{axis} {form(row[column])}" for column, (axis, form) in over.items() if words.finite(row[column]))
        for row in data.to_dict("records")
    ]
    return Chart(identity, title, f"{'; '.join(said)}.", data, draw, height=2.9, margins=(0.85, 0.5, 0.3, 0.3))


def _intervals(axes: Axes, places: Iterable[float], data: pd.DataFrame, said: Sequence[str]) -> None:
    """The gap and interval of each row in the colour of its format, and in words for those who point at it."""
    for place, row, text in zip(places, data.itertuples(), said, strict=True):
        colour = format_style(str(row.format)).colour
        tell(text, axes.vlines([place], [row.low], [row.high], color=colour, linewidth=2))
        tell(text, *axes.plot([place], [row.gap], "o", color=colour, markersize=6))


def _gap_axis(axes: Axes, data: pd.DataFrame) -> None:
    """The y axis of gaps, which shows 0.002 and 0.7 alike."""
    axes.set_yscale("symlog", linthresh=LINEAR_TO, linscale=1.5)
    ticks = [tick for tick in GAP_TICKS if data["low"].min() - 0.02 <= tick <= 1.3 * data["high"].max()]
    axes.set_yticks(ticks, list(map(words.figure, ticks)))
    axes.minorticks_off()
    axes.set_ylabel(f"gap to FP32, nats per character\n(logarithmic beyond ±{LINEAR_TO:g})")


def reference_line(axes: Axes) -> None:
    """The line at zero that differences are measured from, named at its right end."""
    axes.axhline(0, color=FOREGROUND, linewidth=1)
    _label(axes, "FP32", (1, 0), (4, 0), xycoords=("axes fraction", "data"), va="center", color=MUTED)


def _label(axes: Axes, text: str, at: tuple[float, float], away: tuple[float, float], **how: Any) -> None:
    """A text so many points away from a place."""
    axes.annotate(text, at, **{"xytext": away, "textcoords": "offset points", "color": FOREGROUND, **how})


def finite_rows(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows in which all `columns` are numbers that a chart can draw: finite, and so is the axis they span."""
    drawn = frame[list(columns)].map(lambda value: words.finite(value) and abs(value) < 1e300)
    return frame[drawn.all(axis=1)].reset_index(drop=True)


def panel_axes(axes: Axes, titles: Sequence[str], ticks: Sequence[tuple[float, str]]) -> list[float]:
    """Make `axes` a row of panels, each one unit wide; returns where each begins.

    Args:
        axes: whose x axis is divided.
        titles: one a panel.
        ticks: places in a panel (0 to 1) and their labels; the outer ones are aligned inwards.
    """
    offsets = [1.06 * number for number in range(len(titles))]
    axes.set_xlim(0, offsets[-1] + 1)
    axes.xaxis.set_visible(False)
    place = axes.get_xaxis_transform()
    for offset, title in zip(offsets, titles, strict=True):
        _label(axes, title, (offset, 1), (0, 5), xycoords=place)
        for at, label in ticks:
            text, side = (f"step {label}", "left") if at == 0 else (label, "right" if at == 1 else "center")
            _label(axes, text, (offset + at, 0), (0, -5), xycoords=place, ha=side, va="top", color=MUTED)
    return offsets


def rectangles(boxes: Sequence[tuple[float, float, float, float]], colour: str) -> PathPatch:
    """All boxes (left, right, top, bottom) as one filled path, also outside of the axes."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    corners = [((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)) for x0, x1, y0, y1 in boxes]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
    path = Path(np.array(corners).reshape(-1, 2), codes)
    return PathPatch(path, facecolor=colour, edgecolor="none", linewidth=0, clip_on=False)


def bars(
    identity: str,
    title: str,
    data: pd.DataFrame,
    names: str,
    values: str,
    axis: str,
    colours: Sequence[str],
    form: Callable[[float], str],
) -> Chart:
    """Horizontal bars on a logarithmic scale with a line at 1, each with its figure at its end.

    Args:
        data: a row a bar, with its name in the column `names` and what is drawn in `values`.
        axis: what the values are.
        colours: of each bar.
        form: a value as text.
    """
    start, labels, sizes = 0.5, data[names].tolist(), data[values].tolist()

    def draw(axes: Axes) -> None:
        for at, (value, colour) in enumerate(zip(sizes, colours, strict=True)):
            (bar,) = axes.barh(at, value - start, left=start, height=0.62, color=colour)
            tell(said[at], bar)
            axes.text(value * 1.08, at, form(value), va="center", color=FOREGROUND)
        axes.set_xscale("log")
        axes.set_xlim(start, 2 * max(sizes))
        axes.set_yticks(range(len(data)), labels)
        axes.tick_params(axis="y", labelcolor=FOREGROUND)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: words.figure(value))
        axes.axvline(1, color=FOREGROUND, linewidth=1)
        axes.set_xlabel(axis)

    said = [f"{name}: {form(value)}" for name, value in zip(labels, sizes, strict=True)]
    return Chart(identity, title, f"{'; '.join(said)}.", data, draw, height=0.9 + 0.27 * len(data))


class Style(NamedTuple):
    """How one group is drawn, and what the legend calls it."""

    colour: str
    marker: str
    label: str


def grouped_forest(
    identity: str,
    title: str,
    description: str,
    data: pd.DataFrame,
    lines: Sequence[str],
    order: Sequence[str],
    styles: Mapping[str, Style],
    zero: str,
    axis: str,
) -> Chart:
    """Paired differences with their intervals: a line for what is compared, a colour and a marker for each rule.

    Args:
        data: a row each, with finite columns difference, low and high, and `rule`, a key of `styles`.
        lines: on which line each is.
        order: of the lines, from the top; those without a row are left out.
        zero, axis: names of the line at zero, and of the axis with its unit.
    """
    placed = data.assign(line=lines)
    order = [line for line in order if line in set(lines)]
    rules = [rule for rule in styles if (data["rule"] == rule).any()]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=FOREGROUND, linewidth=1)
        _label(axes, zero, (0, 1), (0, 3), xycoords=("data", "axes fraction"), ha="center", color=MUTED)
        for number, rule in enumerate(rules):
            own, (colour, marker, label) = placed[placed["rule"] == rule], styles[rule]
            places = [order.index(line) + 0.16 * (number - (len(rules) - 1) / 2) for line in own["line"]]
            for place, row in zip(places, own.itertuples(), strict=True):
                figures = f"{words.number(row.difference, sign=True)} {words.interval(row.low, row.high)}"
                text = f"{' '.join(str(row.line).split())}, {label}: {figures}"
                tell(text, axes.hlines([place], [row.low], [row.high], color=colour, linewidth=1.6))
                tell(text, *axes.plot([row.difference], [place], marker, color=colour, markersize=4))
            axes.plot([], [], marker, color=colour, markersize=4, label=label)
        axes.set_yticks(range(len(order)), order, color=FOREGROUND)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(axis)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.04), ncols=min(len(rules), 2), frameon=False)

    height = 0.34 * len(order) + 1.4
    return Chart(identity, title, description, data, draw, height=height, margins=(2.2, 0.15, 0.5, 0.75))


def small_multiples(
    identity: str,
    title: str,
    description: str,
    data: pd.DataFrame,
    axes: tuple[str, str],
    panels: tuple[str, Mapping[str, str]],
    by: Sequence[str],
    limit: float,
    axis: str,
) -> Chart:
    """A panel a value of one column, in it a line a group of rows over multiples of something, coloured by format.

    Args:
        data: a row a point, with a column `format`.
        axes: the columns of x, whose ticks are a factor of two apart, and of y, which begins at 0.
        panels: a column, and the titles of its values, in order.
        by: columns whose values make a line.
        limit: where the y axis ends at most; what lies above is not drawn.
        axis: what is drawn over what.
    """
    x, y = axes
    split, titles = panels
    drawn = finite_rows(data, x, y)
    drawn = drawn[drawn[y] <= limit]
    shown = [value for value in titles if (drawn[split] == value).any()]
    formats = sorted(set(drawn["format"]), key=format_order)
    styles = {fmt: format_style(fmt) for fmt in formats}
    low, high = (round(float(np.log2(end))) for end in (drawn[x].min(), drawn[x].max()))
    width, height, across = 144.0, 96.0, 3

    def draw(sketch: Sketch) -> None:
        for number, fmt in enumerate(formats):
            sketch.text(40 + 60 * number, 12, fmt, styles[fmt].colour, bold=True)
        sketch.text(40 + across * (width + 16) - 16, 12, axis, MUTED, anchor="end")
        for number, value in enumerate(shown):
            left, top = 40 + number % across * (width + 16), 46 + number // across * (height + 52)
            across_axis = Axis(2.0**low, 2.0**high, left + 8, left + width - 8, log=True)
            up = Axis(0, limit, top + height, top)
            sketch.text(left, top - 8, titles[value], bold=True)
            for mark in up.marks(3):
                sketch.line([(left, up(mark)), (left + width, up(mark))], GRID, 0.6)
                if number % across == 0:
                    sketch.text(left - 5, up(mark) + 3, number_text(mark), MUTED, anchor="end")
            for power in range(low, high + 1, 1 + (high - low) // 5):
                tick = f"{2.0**power:g}" if power >= 0 else f"1/{2**-power}"
                sketch.text(across_axis(2.0**power), up.start + 14, tick, MUTED, anchor="middle")
            for names, group in drawn[drawn[split] == value].groupby(list(by), sort=False):
                style = styles[dict(zip(by, names, strict=True))["format"]]
                points = [(across_axis(a), up(b)) for a, b in zip(group[x], group[y], strict=True)]
                sketch.line(points, style.colour, 1.2, " ".join(map(str, style.dash)))
                for point, at, value in zip(points, group[x], group[y], strict=True):
                    with sketch.told(f"{', '.join(map(str, names))}, {words.figure(at)}: {words.number(value)}"):
                        sketch.dots([point], style.colour, 1.6)

    size = (46 + -(-len(shown) // across) * (height + 52)) / INCH
    return Chart(identity, title, description, data, sketch=draw, height=size)


def scatter(
    identity: str,
    title: str,
    description: str,
    data: pd.DataFrame,
    axes_names: Mapping[str, str],
    styles: Mapping[str, Style],
    joined: Iterable[tuple[str, str]] = (),
) -> Chart:
    """A point a row: its colour is that of its format, its marker that of its rule.

    Args:
        data: a row a point, with columns `arm`, `format` and `rule`, a key of `styles`.
        axes_names: the columns of x and y, finite, and what the axes are called.
        joined: pairs of arms with a dashed line between them.
    """
    x, y = axes_names
    ends = [data.set_index("arm").loc[list(pair), [x, y]] for pair in joined]

    def draw(axes: Axes) -> None:
        for pair in ends:
            axes.plot(pair[x], pair[y], "--", color=MUTED, linewidth=1)
        for name, group in sorted(data.groupby("format"), key=lambda each: format_order(str(each[0]))):
            colour = format_style(str(name)).colour
            for rule, own in group.groupby("rule"):
                for arm, at, up in zip(own["arm"], own[x], own[y], strict=True):
                    (mark,) = axes.plot([at], [up], styles[str(rule)].marker, color=colour, markersize=5)
                    told = f"{words.figure(at, '.4g')}, {words.figure(up, '.4g')}"
                    tell(f"{name}, {styles[str(rule)].label}: {told} ({arm})", mark)
            axes.plot([], [], "o", color=colour, label=str(name))
        for rule in dict.fromkeys(data["rule"]):
            axes.plot([], [], styles[rule].marker, color=MUTED, label=styles[rule].label)
        axes.set_xlabel(axes_names[x])
        axes.set_ylabel(axes_names[y])
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, ncols=4, columnspacing=1)

    return Chart(identity, title, description, data, draw, height=4.4, margins=(0.7, 0.15, 0.5, 0.6))


def lines(
    identity: str,
    title: str,
    description: str,
    data: pd.DataFrame,
    drawn: pd.DataFrame,
    columns: tuple[str, str, str],
    axes_titles: tuple[str, str],
    *,
    formats: Mapping[str, str] | None = None,
    panels: tuple[str, Mapping[str, str]] | None = None,
    crossed: Collection[str] = (),
    markers: bool = False,
    percent: bool = False,
    log: bool = False,
    right: float = 1.1,
) -> Chart:
    """A line a series in its own colour, with its name at its end.

    Args:
        data: to download.
        drawn: what is drawn, a point a row.
        columns: of `drawn`: x (names are drawn in the order in which they come), y, and the series.
        axes_titles: of x and y.
        formats: of the series, where each is of one: they have its colour.
        panels: a column of `drawn`, and the titles of its values that have a panel, side by side, in order.
        crossed: series that end in a cross.
        markers: whether the points are marked.
        percent, log: how y is written, and its scale.
        right: inches for the names.
    """
    x, y, series = columns
    names = list(dict.fromkeys(drawn[series]))
    categories = [] if pd.api.types.is_numeric_dtype(drawn[x]) else list(dict.fromkeys(drawn[x]))
    places = drawn[x].map(categories.index) if categories else drawn[x]
    split, titles = panels or (series, {})
    shown = [value for value in titles if (drawn[split] == value).any()]
    if formats:
        styled = distinct_styles(formats[name] for name in names)
        looks = [(style.colour, style.line) for style in styled]
    else:
        looks = [(colour, "-") for _, colour in zip(names, itertools.cycle(PALETTE), strict=False)]

    def draw(axes: Axes) -> None:
        first, last = places.min(), places.max()
        at = places.astype(float)
        if panels:
            offsets = panel_axes(axes, [titles[value] for value in shown], [(0.0, str(first)), (1.0, str(last))])
            at = (at - first) / max(last - first, 1) + drawn[split].astype(str).map(
                dict(zip(shown, offsets, strict=True))
            )
        ends = []
        for name, (colour, dashes) in zip(names, looks, strict=True):
            for _, line in drawn[drawn[series] == name].groupby(split, sort=False, observed=True):
                size = 3 if markers else 0
                axes.plot(at[line.index], line[y], linestyle=dashes, color=colour, linewidth=1.5, marker="o", ms=size)
                for place, here, value in zip(at[line.index], line[x], line[y], strict=True):
                    figure = words.percent(value) if percent else words.figure(value, ".4g")
                    x_text = here if categories else words.figure(here)
                    where = f"step {x_text}" if panels else x_text if categories else f"{axes_titles[0]}: {x_text}"
                    tell(f"{name}, {where}: {figure}", *axes.plot([place], [value], "o", color=colour, alpha=0, ms=8))
            end = at[drawn[series] == name].idxmax()
            ends.append(float(drawn.at[end, y]))
            if name in crossed:
                axes.plot([at[end]], [drawn.at[end, y]], color=colour, marker="x", markersize=7, linewidth=0)
        scale, back = (np.log10, lambda place: 10**place) if log else (np.asarray, float)
        heights = spread(list(scale(np.array(ends))), 0.06 * np.ptp(scale(drawn[y].dropna().to_numpy(dtype=float))))
        for name, height, (colour, _) in zip(names, heights, looks, strict=True):
            place = ("axes fraction", "data")
            axes.annotate(name, (1.01, back(height)), xycoords=place, va="center", color=colour)
        if log:
            axes.set_yscale("log")
        if log or percent:
            axes.yaxis.set_major_formatter(
                lambda value, _: f"{words.figure(100 * value)}%" if percent else words.figure(value)
            )
        if categories:
            axes.set_xticks(range(len(categories)), categories, color=FOREGROUND)
        axes.set_xlabel(axes_titles[0])
        axes.set_ylabel(axes_titles[1])

    margins = (0.7, right, 0.5, 0.3)
    return Chart(identity, title, description, data, draw, height=3.0, margins=margins)
