"""What a run logged, gathered into one table: a row a step, a column a metric, under the names that the loop gave.

Loops log the metrics of one step in several calls, go back to a step after a restart, count in epochs or in fractions
of them. `Gathered` takes cells in any order; of a metric that one step has twice, the last value is kept, and said.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from altgrad.runs.names import columns, leaves, normal
from altgrad.runs.schema import Failure
from altgrad.text import visible

MOST_METRICS = 5_000
"""Names of metrics that one run may have; a loop that logs more has values for names."""
MOST_CELLS = 200_000_000
_LAST_STEP = 2**53
STEPS = (
    "step", "global_step", "_step", "trainer_global_step", "iteration", "iter", "iter_num", "update", "num_updates",
)  # fmt: skip
"""Names of the column that is the step, the best first; where there is none, `EPOCHS`; else rows are numbered."""
EPOCHS = ("epoch", "epochs", "round")
LOSSES = ("loss", "val_loss", "test_loss", "perplexity")
"""Metrics of which lower is better, whoever logged them."""
PARTS = ("split", "phase", "mode", "stage", "subset", "partition")
"""Columns of words that say which data a row is about: ``loss`` of the part "val" is another metric than of "train"."""
TIMES = ("_timestamp", "timestamp", "wall_time", "time", "datetime", "created_at")
_TEXT_NUMBERS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
_RESERVED = {"step": "logged_step", "run_id": "logged_run_id"}


class History(NamedTuple):
    """A run's table, column ``step`` first, and what is to be said of it, a line each."""

    table: pa.Table
    lines: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        """The highest step; 0 without rows."""
        return int(self.table["step"][-1].as_py()) if len(self.table) else 0

    @property
    def names(self) -> list[str]:
        """The metrics, as the loop called them."""
        return [name for name in self.table.column_names if name != "step"]


class Gathered:
    """Cells of a history, as they come."""

    def __init__(self) -> None:
        self._cells: dict[str, list[tuple[Any, Any]]] = {}
        self._rows: dict[str, tuple[array[int], array[float]]] = {}
        self._bare = array("q")
        self._unknown: set[str] = set()
        self._not_numbers = Counter[str]()
        self.lines: list[str] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Some metrics of a step."""
        self._bare.append(step)
        for name, value in values.items():
            cells = self._rows.get(name)
            if cells is None:
                if not self._has_room(name):
                    continue
                cells = self._rows[name] = (array("q"), array("d"))
            cells[0].append(step)
            cells[1].append(value)

    def add_column(self, name: str, steps: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """One metric at some steps, in the order in which they were logged."""
        if not self._has_room(name):
            return
        near = np.abs(steps.astype(np.float64)) <= _LAST_STEP
        if beyond := len(near) - int(near.sum()):
            self.lines.append(f"metric: {name}: {beyond} values at steps beyond 2**53 are not kept")
            steps, values = steps[near], values[near]
        self._cells.setdefault(_RESERVED.get(name, name), []).append((steps, values))

    def not_a_number(self, name: str, count: int = 1) -> None:
        """A value that is an image, a text or a histogram, and is not kept."""
        self._not_numbers[name] += count

    def _has_room(self, name: str) -> bool:
        if name in self._cells or name in self._rows or len(self._cells) + len(self._rows) < MOST_METRICS:
            return True
        self._unknown.add(name)
        return False

    def history(self) -> History:
        """The table of all cells.

        Raises:
            ValueError: the table would not fit into memory.
        """
        cells = {name: [*parts] for name, parts in self._cells.items()}
        for name, (at_steps, numbers) in self._rows.items():
            own = _RESERVED.get(name, name)
            cells.setdefault(own, []).append((np.frombuffer(at_steps, np.int64), np.frombuffer(numbers, np.float64)))
        columns = {
            name: parts[0] if len(parts) == 1 else tuple(np.concatenate(each) for each in zip(*parts, strict=True))
            for name, parts in cells.items()
        }
        lines = list(self.lines)
        every = [np.frombuffer(self._bare, np.int64)]
        for steps, _ in columns.values():
            if not np.array_equal(steps, every[-1]):  # most metrics of a run have the same
                every.append(steps)
        at = np.unique(np.concatenate(every))
        if len(at) * len(columns) > MOST_CELLS and (few := [n for n in columns if len(columns[n][0]) < len(at) / 100]):
            lines.append(f"metrics: {len(few):,} names with values at few of {len(at):,} steps are not kept")
            columns = {name: cells for name, cells in columns.items() if name not in {*few}}
        if len(at) * len(columns) > MOST_CELLS:
            raise ValueError(f"{len(at):,} steps of {len(columns):,} metrics are too many for one table")
        found = {"step": pa.array(at)}
        for name, (steps, values) in columns.items():
            place = np.searchsorted(at, steps)
            dense, there = np.full(len(at), np.nan), np.zeros(len(at), bool)
            dense[place], there[place] = values, True
            if len(steps) > (kept := int(there.sum())):
                same = np.equal(dense[place], values) | (np.isnan(dense[place]) & np.isnan(values))
                if others := int((~same).sum()):
                    lines.append(f"metric: {name}: {others} values at steps that have a later one are not kept")
            found[name] = pa.array(dense, mask=None if kept == len(at) else ~there)
        if self._unknown:
            what = f"{len(self._unknown):,} names beyond the first {MOST_METRICS:,} are not kept"
            lines.append(f"metrics: {what}: names like {', '.join(sorted(self._unknown)[:3])} look like values")
        lost = [
            f"metric: {name}: {count} values are no numbers and are not kept"
            for name, count in self._not_numbers.items()
        ]
        return History(pa.table(found), tuple(lines + lost))


def diverged(table: pa.Table) -> Failure | None:
    """That a loss of a run (`LOSSES`) is NaN or infinite from a step to its last value; None where none is.

    Loops that write NaN at steps without an evaluation have it between values too: what ends a run is longer than that.
    A loss that never has a value counts where no other has any.
    """
    found = []
    for name, column in columns(each for each in table.column_names if each != "step").items():
        if column in LOSSES:
            rows = table.select(["step", name]).drop_null()
            good = np.flatnonzero(np.isfinite(rows[name].to_numpy().astype(np.float64)))
            *within, last = np.diff([-1, *good, len(rows)]) - 1
            step = rows["step"][len(rows) - int(last)].as_py() if last > max(within, default=0) else None
            found.append((len(good) > 0, step, visible(name)))
    any_good = any(good for good, *_ in found)
    bad = [(step, name) for good, step, name in found if step is not None and good == any_good]
    if not bad:
        return None
    step, name = min(bad)
    return Failure(("nan_loss",), step, message=f"{name} is NaN or infinite from step {step} to its last value")


def of_rows(rows: Iterable[Mapping[str, Any]], steps: Sequence[str] = STEPS, texts: bool = False) -> History:
    """The history of rows as a logger has them: nested mappings, NaN and infinity as text.

    The step is the first of `steps` that one of the first rows has; a row without it belongs to the one before. Where
    none has, an epoch in whole numbers is the step; else rows are numbered.

    Args:
        rows: in the order in which they were logged.
        steps: names of the step, the best first.
        texts: every text that reads as a number is one (CSV).

    Raises:
        ValueError: as `Gathered.history`.
    """
    found, rows = Gathered(), iter(rows)
    first = list(islice(rows, 200))
    reader = Rows(found, _step_of(first, steps), texts)
    for row in chain(first, rows):
        reader.add(row)
    return found.history()


def of_wandb(rows: Iterable[Mapping[str, Any]]) -> History:
    """The history of W&B's rows, whose step is ``_step``; rows without one are numbered on.

    Raises:
        ValueError: as `Gathered.history`.
    """
    found = Gathered()
    reader = Rows(found, "_step", besides=("_timestamp",), parts=(), counted=True)
    for row in rows:
        reader.add(row)
    return found.history()


class Rows:
    """Puts rows into a `Gathered`: finds the step of each, and its numbers."""

    def __init__(
        self,
        found: Gathered,
        step: str | None,
        texts: bool = False,
        *,
        besides: Sequence[str] = TIMES,
        parts: Sequence[str] = PARTS,
        counted: bool = False,
    ) -> None:
        self._found, self._key, self._texts, self._counted = found, step, texts, counted
        self._besides, self._parts = besides, parts
        self._last: int | None = None
        self._known: dict[str, str] = {}
        self._odd = False
        if step in EPOCHS:
            found.lines.append(f"step: the rows have none; their {step} is taken for it")
        elif step is None:
            found.lines.append("step: the rows have none, and are numbered")

    def add(self, row: Mapping[str, Any]) -> None:
        """One row."""
        values: dict[str, float] = {}
        at, part = math.nan, ""
        for name, value in leaves(row):
            known = self._known.get(name)
            if known is None:
                known = self._known[name] = normal(name) if len(self._known) < MOST_METRICS else name
            number = number_of(value, self._texts or known == self._key)
            if known in self._besides and (self._counted or number is None or 1e9 < number < 1e13):
                continue
            if number is None:
                if known in self._parts and isinstance(value, str):
                    part = value.strip()
                elif value is not None and not (self._texts and value == ""):
                    self._found.not_a_number(name)
            elif known == self._key and math.isnan(at):
                at = number
                if known in EPOCHS:
                    values[name] = number
            else:
                while name in values:  # nested and dotted
                    name += "_"
                values[name] = number
        if part:
            values = {name if name in EPOCHS else f"{part}/{name}": value for name, value in values.items()}
        self._found.add(self._step(at, values), values)

    def _step(self, at: float, values: dict[str, float]) -> int:
        if abs(at) <= _LAST_STEP and (at == int(at) or self._counted):
            self._last = int(at)
        elif self._last is None:
            self._last = 0
        elif self._key is None or self._counted or not math.isnan(at):
            self._last += 1
        if self._last != at and not math.isnan(at):
            values["logged_step"] = at
            if not self._odd:
                self._found.lines.append("step: not whole in every row; such a row follows the one before it")
            self._odd = True
        return self._last


def number_of(value: Any, texts: bool = False) -> float | None:
    """A value as a float64, NaN and infinity from their names; None where it is none."""
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, str):
        return None
    if texts:
        try:
            return float(value)
        except ValueError:
            return {"true": 1.0, "false": 0.0}.get(value.strip().lower())
    return _TEXT_NUMBERS.get(value.strip().lower())


def _step_of(rows: Sequence[Mapping[str, Any]], steps: Sequence[str]) -> str | None:
    """The name of the step, as `normal` has it."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        for name, value in leaves(row):
            if (known := normal(name)) in (*steps, *EPOCHS) and (number := number_of(value, True)) is not None:
                seen.setdefault(known, []).append(number)
    whole = {name for name in EPOCHS if name in seen and all(float(value).is_integer() for value in seen[name])}
    return next((name for name in (*steps, *EPOCHS) if name in whole or (name in seen and name not in EPOCHS)), None)
