"""Columns of tables: each says once what its title is, what it shows of a row, how that is aligned and where it leads.

    table(frame, (arm("Format"), signed("Gap to FP32", "gap"), interval(), count("Pairs", "n_pairs")), "Gaps", "gaps")

A row is a dict, of a DataFrame or of one's own. A missing value is shown as a dash. With an id the whole frame is the
table's CSV and JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.site import Cell, Column, Link, PageRef, Table, Text

MAKES_FOR_OTHERS = True
"""The source of a table made here is the function that asked for it."""

Row = Mapping[Any, Any]


def table(
    rows: pd.DataFrame | Iterable[Row],
    columns: Sequence[Column],
    caption: Text = "",
    id: str = "",
    data: pd.DataFrame | None = None,
) -> Table:
    """The rows through the columns; with an `id`, `data` (the rows themselves where not given) is there to download."""
    frame = rows if isinstance(rows, pd.DataFrame) else None
    records = list(rows) if frame is None else frame.to_dict("records")
    cells = tuple(tuple(_shown(column, row) for column in columns) for row in records)
    if id and data is None:
        data = pd.DataFrame(records) if frame is None else frame
    return Table(tuple(columns), cells, caption, data=data, id=id)


def _shown(column: Column, row: Row) -> Cell:
    if column.cell is None:
        raise ValueError(f"column {column.title!r} does not say what it shows of a row")
    return column.cell(row)


def missing(value: object) -> bool:
    """Whether a value is None, NaN or NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def of(title: Text, cell: Callable[[Row], Cell], right: bool = False, sortable: bool = True) -> Column:
    """A column of whatever `cell` gives for a row."""
    return Column(title, "right" if right else "left", sortable, cell)


def text(title: Text, key: str, words_of: Mapping[Any, str] | None = None) -> Column:
    """The value as it is, or what `words_of` calls it."""

    def cell(row: Row) -> Cell:
        value = row[key]
        return None if missing(value) or value == "" else words_of.get(value, value) if words_of else value

    return of(title, cell)


def count(title: Text, key: str) -> Column:
    """A whole number."""
    return of(title, lambda row: None if missing(row[key]) else int(row[key]), right=True)


def last_step() -> Column:
    """The last step of a run that has logged one."""
    return of("Last step", lambda row: int(row["last_step"]) if row["last_step"] >= 0 else "none", right=True)


def number(title: Text, key: str, digits: int = 3, sign: bool = False) -> Column:
    """Fixed digits."""
    return of(title, lambda row: words.number(row[key], digits, sign), right=True)


def signed(title: Text, key: str, digits: int = 3) -> Column:
    """Fixed digits with their sign."""
    return number(title, key, digits, sign=True)


def general(title: Text, key: str, form: str = "g") -> Column:
    """A number as short as it is, such as a learning rate; another form where one is given, such as ``.3g``."""
    return of(title, lambda row: None if missing(row[key]) else words.figure(row[key], form), right=True)


def percent(title: Text, key: str) -> Column:
    """A fraction as a percentage."""
    return of(title, lambda row: words.percent(row[key]), right=True)


def interval(
    title: Text = "95% interval", low: str = "low", high: str = "high", digits: int = 3, sign: bool = True
) -> Column:
    """``[low, high]``, of a difference; of a value itself without `sign`."""
    return of(title, lambda row: words.interval(row[low], row[high], digits, sign), right=True)


def differences(title: Text, rows: pd.DataFrame, id: str) -> Table:
    """A row a contrast of `altgrad.analysis.contrasts`: the difference as `title`, interval, pairs, unfinished runs."""
    columns = (
        contrast("Arm"),
        signed(title, "difference"),
        interval(),
        count("Pairs", "n_pairs"),
        count("Not finished", "n_ended_badly"),
    )
    return table(rows, columns, id=id)


def p(title: Text, key: str) -> Column:
    """A p-value."""
    return of(title, lambda row: words.p_text(row[key]), right=True)


def share(title: Text = "Finished", part: str = "n_finished", whole: str = "n_runs") -> Column:
    """``15 of 16``; that it is not recorded where the part is not known."""
    return of(title, lambda row: "not recorded" if pd.isna(row[part]) else f"{row[part]} of {row[whole]}", right=True)


class _Fill(Formatter):
    """Templates with numbers as readers are shown them."""

    def format_field(self, value: Any, format_spec: str) -> str:
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        return words.figure(value, format_spec) if number else str(format(value, format_spec))


_FILL = _Fill()


def filled(title: Text, template: str, right: bool = True, blank: str | None = None) -> Column:
    """The row in a template such as ``{low:.2f} to {high:.2f}``; `blank` where it has not all of these values."""
    keys = [key for _, key, *_ in Formatter().parse(template) if key]

    def cell(row: Row) -> Cell:
        return blank if any(missing(row[key]) for key in keys) else _FILL.vformat(template, (), row)

    return of(title, cell, right)


def arm_link(arm: str, shown: str | None = None, run_id: str = "") -> Link:
    """A link to an arm's page, or to one of its runs on it."""
    return Link(shown or arm, PageRef(f"runs/{arm}", run_id))


def arm(
    title: Text = "Format", key: str = "format", arm: str = "arm", words_of: Mapping[Any, str] | None = None
) -> Column:
    """The value, which leads to the page of the row's arm; plain where the row has none."""

    return of(title, lambda row: _to_arm(row[arm], words_of.get(row[key], row[key]) if words_of else row[key]))


def _to_arm(arm: str, shown: str) -> Cell:
    return arm_link(arm, shown) if arm and not missing(arm) else shown


def contrast(title: Text) -> Column:
    """A contrast in short, which leads to the page of its first arm; plain where the row has none."""
    return of(title, lambda row: _to_arm(row["arm"], words.in_short(row["contrast"])))


def named(labels: Mapping[str, str], title: Text = "Arm", arm: str = "arm") -> Column:
    """What `labels` (`altgrad.analysis.labels`) call the row's arm, which leads to its page."""
    return of(title, lambda row: arm_link(row[arm], labels[row[arm]]))


def run(title: Text = "Run", run_id: str = "run_id", arm: str = "arm") -> Column:
    """A run's id, which leads to the run on its arm's page."""
    return of(title, lambda row: arm_link(row[arm], row[run_id], row[run_id]))
