"""Heat maps: where and when a figure of the layers is bad, in six levels; and rows by columns with their figures."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis import words
from altgrad.analysis.words import names
from altgrad.site import BACKGROUND, FOREGROUND, HEAT, MUTED, Chart
from altgrad.site.sketch import INCH, Sketch
from altgrad.text import cut, shorten, visible

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
MAKES_FOR_OTHERS = True
"""The source of a chart made here is the function that asked for it."""

HEAT_COLUMNS = 60
"""Most columns of a heat map's panel; of more looks, neighbours share a column that shows the worst."""
HEAT_ROWS = 40
"""Most rows of a heat map; of more layers, those with the worst values are drawn."""
MAP_WIDTH, MAP_LEAST, LETTER = 460.0, 305.0, 6.4
"""Of a map of figures, in points: most and least width, and the room of a letter."""
HEAD_LINES, HEAD_LINE = 3, 8
"""Most lines of a column's head, and the letters that a line has room for at least."""


@dataclass(frozen=True)
class Levels:
    """The six levels of a heat map, harmless first, with fixed edges: maps of one figure compare across pages.

    Attributes:
        edges: the five edges between levels; rising where a larger value is worse, falling where a smaller one is.
        legend: the six levels in words.
        text: how a value is written.
        missing: what a missing value means, in words.
    """

    edges: tuple[float, ...]
    legend: tuple[str, ...]
    text: Callable[[float], str]
    missing: str = "not recorded"

    @property
    def sign(self) -> int:
        """1 where larger is worse, -1 where smaller is."""
        return 1 if self.edges[-1] > self.edges[0] else -1

    def of(self, values: Floats) -> Whole:
        """The level of each value, 0 to 5; -1 for NaN. An edge itself belongs to the worse level where larger is worse,
        and to the better one where smaller is."""
        side: Literal["left", "right"] = "right" if self.sign > 0 else "left"
        found = np.searchsorted(self.sign * np.array(self.edges), self.sign * values, side=side)
        return np.where(np.isnan(values), -1, found)


def heat_map(
    identity: str, title: str, data: pd.DataFrame, levels: Levels, panels: dict[str, str], note: str = ""
) -> Chart:
    """Layers by step in six levels, a panel for each operand side by side: where and when a figure is bad.

    One path a level with neighbouring cells merged, so that the drawing stays small. Missing values are drawn as a
    line; where a layer has no value of an operand at all (an embedding reads no activations), nothing is drawn.

    Args:
        data: columns layer, operand, step, value, one row a cell; layers are drawn in the order in which they come.
        levels: what the colours mean.
        panels: titles of the operands, in the order of the panels; those without data are left out.
        note: what the description says first, such as whose runs these are.
    """
    recorded = set(data["operand"])
    shown = [name for name in panels if name in recorded]
    layers = list(dict.fromkeys(data["layer"]))
    steps = np.unique(data["step"].to_numpy())
    whole = np.full((len(layers), len(shown), len(steps)), np.nan)
    place = data["layer"].map(layers.index), data["operand"].map(shown.index), np.searchsorted(steps, data["step"])
    whole[place] = data["value"]
    cells, first_steps = _shared_columns(whole, steps, levels.sign)
    said = _heat_words(cells, layers, [panels[name] for name in shown], first_steps, levels)
    worst = np.where(np.isnan(cells), -np.inf, levels.sign * cells).max(axis=(1, 2))
    rows, left_out = sorted(np.argsort(-worst, kind="stable")[:HEAT_ROWS].tolist()), ""
    if len(rows) < len(layers):
        left_out = f" The {len(rows)} worst of {len(layers)} layers are drawn."
    if len(first_steps) < len(steps):
        left_out += f" {len(steps)} looks share {len(first_steps)} columns; each shows the worst."
    drawn, names_ = levels.of(cells[rows]), [shorten(visible(layers[row]), 34) for row in rows]
    height, left = 0.17 * len(rows) + 0.95, 0.3 + 0.068 * max(len(name) for name in names_)
    width, up, top = 7.2, 0.17 * INCH, 0.3 * INCH

    def sketch(drawing: Sketch) -> None:
        wide = (drawing.width - (left + 0.15) * INCH) / (1.06 * len(shown) - 0.06)  # of one panel
        for row, name in enumerate(names_):
            drawing.text(left * INCH - 5, top + (row + 0.5) * up + 3, name, MUTED, anchor="end")
        boxes: list[list[tuple[float, float, float, float]]] = [[] for _ in range(len(HEAT) + 1)]
        base = top + len(rows) * up
        for number, operand in enumerate(shown):
            start = left * INCH + 1.06 * number * wide
            drawing.text(start, top - 6, panels[operand])
            drawing.text(start, base + 11, f"step {steps[0]}", MUTED)
            drawing.text(start + wide, base + 11, str(steps[-1]), MUTED, anchor="end")
            for row, line in enumerate(drawn[:, number]):
                for level, begin, end in _runs(line) if (line >= 0).any() else ():
                    half = (0.44 if level >= 0 else 0.03) * up
                    middle = top + (row + 0.5) * up
                    x0, x1 = (start + wide * place / len(line) for place in (begin, end))
                    boxes[level].append((x0, middle - half, x1, middle + half))
        place, below = 0.1 * INCH, base + 0.45 * INCH
        for level, word in enumerate([*levels.legend, *([levels.missing] if boxes[-1] else [])]):
            half = (0.055 if level < len(HEAT) else 0.01) * INCH
            boxes[level].append((place, below - half, place + 0.13 * INCH, below + half))
            drawing.text(place + 0.18 * INCH, below + 3, word)
            place += (0.36 + 0.066 * len(word)) * INCH
        for found, colour in zip(boxes, (*HEAT, MUTED), strict=True):
            drawing.rectangles(found, colour)

    description, wide = f"{note} {said}{left_out}".strip(), _wide(whole, layers, shown, steps)
    return Chart(identity, title, description, wide, sketch=sketch, width=width, height=height)


GAP_EDGES, GAP_LEVELS = (0.01, 0.05, 0.1, 0.5), ("to 0.01", "to 0.05", "to 0.1", "to 0.5", "more")
"""Of gaps in nats per character."""


def gaps_map(identity: str, title: str, data: pd.DataFrame, value: str, columns: str, order: Iterable[str]) -> Chart:
    """The mean gaps (column `value`) of formats by another column, each with its figure on the colour of its level.

    Args:
        data: a row each, with a column format; formats are drawn in the order in which they come first.
        order: the names of `columns`, from left to right.
    """
    cells = data.pivot(index="format", columns=columns, values=value)
    cells = cells.reindex(index=data["format"].drop_duplicates(), columns=list(order))
    return figures_map(identity, title, cells, data, GAP_EDGES, GAP_LEVELS, partial(words.number, sign=True))


def figures_map(
    identity: str,
    title: str,
    cells: pd.DataFrame,
    data: pd.DataFrame,
    edges: Sequence[float],
    legend: Sequence[str],
    text: Callable[[float], str],
    note: str = "",
) -> Chart:
    """Rows by columns, each cell with its figure on the colour of its level: where the large ones are.

    Args:
        cells: what is drawn; its index and columns are names, and what is missing is drawn as a dash.
        data: to download.
        edges: the four edges between the levels, rising; an edge itself belongs to the level below it.
        legend: the five levels in words; the figures beyond the second level are bold.
        text: how a figure is written.
        note: what the description says first.
    """
    up, size, line = 0.3 * INCH, 10.5, 12.5
    figures = [[text(value) if not np.isnan(value) else "–" for value in values] for values in cells.to_numpy()]
    rows_named = [cut(str(name), 24) for name in cells.index]
    left = max(0.55 * INCH, 12 + 7.2 * max(map(len, rows_named), default=0))
    names_, needed = [*map(str, cells.columns)], [max(map(len, column)) for column in zip(*figures, strict=True)]
    rooms = _rooms(names_, needed, (MAP_WIDTH - left) / LETTER)
    lengths = [24 + 5.6 * len(word) for word in legend]
    width = max(left + LETTER * sum(rooms), sum(lengths) + 3, MAP_LEAST)
    spare = ((width - left) / LETTER - sum(rooms)) / max(1, len(rooms))
    heads = [_head(name, int(room + spare - 0.5)) for name, room in zip(names_, rooms, strict=True)]
    starts = [*itertools.accumulate((LETTER * (room + spare) for room in rooms), initial=left)]
    top = 0.34 * INCH + line * (max(map(len, heads), default=1) - 1)
    colours = [colour for colour in HEAT if colour != HEAT[3]]  # on which no text has contrast enough

    def sketch(drawing: Sketch) -> None:
        columns = [*itertools.pairwise(starts)]
        for lines, (start, end) in zip(heads, columns, strict=True):
            for number, part in enumerate(reversed(lines)):
                drawing.text((start + end) / 2, top - 8 - line * number, part, MUTED, size=size, anchor="middle")
        for row, (name, values) in enumerate(zip(rows_named, cells.to_numpy(), strict=True)):
            middle = top + (row + 0.5) * up
            drawing.text(left - 8, middle + 3.5, name, size=size, anchor="end", bold=True)
            for value, figure, (start, end) in zip(values, figures[row], columns, strict=True):
                known = not np.isnan(value)
                level = int(np.searchsorted(edges, value)) if known else 0
                if known:
                    box = (start + 1.5, middle - up / 2 + 1.5, end - 1.5, middle + up / 2 - 1.5)
                    drawing.rectangles([box], colours[level])
                colour = FOREGROUND if level < 3 else BACKGROUND
                at = (start + end) / 2, middle + 3.5
                drawing.text(*at, figure, colour, size=size, anchor="middle", bold=level > 1)
        place, below = max(1.5, min(left, width - sum(lengths))), top + len(cells) * up + 0.22 * INCH
        for colour, word, length in zip(colours, legend, lengths, strict=True):
            drawing.rectangles([(place, below - 5, place + 10, below + 5)], colour)
            drawing.text(place + 14, below + 3.5, word, size=size)
            place += length

    rows = (
        f"{name}: {', '.join(f'{column} {text(value)}' for column, value in values.dropna().items())}"
        for name, values in cells.iterrows()
    )
    said, height = f"{note} {'; '.join(rows)}.".strip(), (top + len(cells) * up) / INCH + 0.4
    return Chart(identity, title, said, data, sketch=sketch, width=width / INCH, height=height)


def _rooms(names: Sequence[str], figures: Sequence[int], most: float) -> list[float]:
    """The room of each column of a map, in letters: of the longest word of its name, or of its longest figure.

    Where all together have more than `most` letters, they share these alike.
    """
    rooms = [
        max(figure, min(HEAD_LINE, len(name)), *map(len, name.split())) + 1.5
        for name, figure in zip(names, figures, strict=True)
    ]
    return rooms if sum(rooms) <= most else [most / len(rooms)] * len(rooms)


def _head(name: str, room: int) -> list[str]:
    """A column's name in lines of at most `room` letters; what is longer is cut."""
    room = max(4, room)
    lines = textwrap.wrap(name, room, break_long_words=False, break_on_hyphens=False) or [""]
    last = " ".join(lines[HEAD_LINES - 1 :])
    return [cut(part, room) for part in [*lines[: HEAD_LINES - 1], last] if part]


def _wide(cells: Floats, layers: Sequence[str], operands: Sequence[str], steps: Whole) -> pd.DataFrame:
    """[layers, operands, steps] as a table to download: a row a layer and operand with values, a column a step."""
    index = pd.MultiIndex.from_product([layers, operands], names=["layer", "operand"])
    frame = pd.DataFrame(cells.reshape(len(index), len(steps)), index, [str(step) for step in steps])
    return frame.dropna(how="all").reset_index()


def _shared_columns(cells: Floats, steps: Whole, sign: int) -> tuple[Floats, Whole]:
    """At most `HEAT_COLUMNS` columns, the worst of neighbours in one; and the first step of each."""
    if len(steps) <= HEAT_COLUMNS:
        return cells, steps
    starts = np.unique(np.linspace(0, len(steps), HEAT_COLUMNS, endpoint=False).astype(int))
    worst = np.fmax.reduceat(sign * cells, starts, axis=2)
    return sign * worst, steps[starts]


def _runs(levels: Whole) -> list[tuple[int, int, int]]:
    """(level, start, stop) of each run of equal levels."""
    edges = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), len(levels)]
    return [(int(levels[start]), start, stop) for start, stop in itertools.pairwise(edges)]


def _heat_words(cells: Floats, layers: Sequence[str], panels: Sequence[str], steps: Whole, levels: Levels) -> str:
    """A heat map in words: its extent, its worst layers with figures, and how many values are missing."""
    known = ~np.isnan(cells)
    missing = int((~known & known.any(axis=2, keepdims=True)).sum())
    badness = np.where(known, levels.sign * cells, -np.inf)
    worst, parts = badness.max(axis=2), []
    for place in np.argsort(-worst, axis=None, kind="stable")[:3].tolist():
        row, panel = divmod(place, len(panels))
        if known[row, panel].any():
            column = int(np.argmax(badness[row, panel]))
            where = f"{layers[row]} {panels[panel]}" if len(panels) > 1 else layers[row]
            parts.append(f"{where} {levels.text(cells[row, panel, column])} at step {steps[column]}")
    absent = f" {missing} values are missing ({levels.missing})." if missing else ""
    return (
        f"{len(layers)} layers at {len(steps)} looks from step {steps[0]} to {steps[-1]}, for {names(panels)}. "
        f"Worst: {'; '.join(parts)}.{absent}"
    )
