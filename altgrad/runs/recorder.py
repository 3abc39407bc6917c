"""What records a loop that is not AltGrad's: it takes whatever the loop logs, and never ends it.

Of the processes of a distributed run only rank 0 writes; in the others a recorder does nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.schema import Failure, plain, public_line
from altgrad.runs.secrets import mask
from altgrad.runs.writer import RunWriter, ending

_LAST_STEP = 2**63 - 1
_LARGEST = 2**53  # beyond it, not every integer is a float64
_DEEPEST = 10
_LINES = 20
"""Lines of warnings that one recorder prints at most."""
_TAKEN = {"step": "logged_step", "run_id": "logged_run_id"}
"""Names that columns of records have already -> what a metric of such a name is kept as."""


class Recorder:
    """The record of a loop's run, opened by `altgrad.runs.record`; a context manager.

    Nothing that goes wrong here ends the loop: it is one line on stderr, and the training goes on.

    Leaving the block through an exception marks the run ``crashed`` (``interrupted`` for KeyboardInterrupt and
    SystemExit) and lets the exception go on; leaving it without `finish` or `fail` marks it ``interrupted``.

    Attributes:
        run_id: the run's id, which is also its folder's name.
        path: its folder.
    """

    def __init__(self, writer: RunWriter | None, run_id: str, path: Path) -> None:
        self.run_id, self.path = run_id, path
        self._writer, self._writes = writer, writer is not None
        self._columns: dict[str, str] = {}  # names of metrics as given -> as recorded
        self._known: set[str] = set()  # those that are recorded as given
        self._told: set[object] = set()
        self._lost = 0

    @property
    def run(self) -> dict[str, Any]:
        """run.json as it is now; empty where this process does not write, and after the end."""
        return {} if self._writer is None else self._writer.run

    def log(self, step: Any = None, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Append metrics of a step.

        ``log(3, loss=2.0)``, ``log(3, {"val/loss": 2.1})`` and, as W&B has it, ``log({"loss": 2.0}, step=3)``. The
        metrics of a step may come in any number of calls, and steps in any order. Numbers of every kind are recorded,
        NaN and infinity too; booleans as 0 and 1, texts that are numbers as these, mappings by dotted names. Anything
        else is left out, and one line says so for each name. Without a step, or with one that is no integer, the row is
        that of the next step.
        """
        if (writer := self._writer) is None:
            self._say_ended("log")
            return
        try:
            row: Mapping[str, Any] = more if metrics is None else {**metrics, **more}
            numbers, known = row, self._known.issuperset(row)
            if not set(map(type, row.values())) <= {float}:
                numbers = {name: _number(value) for name, value in row.items()}
                known = known and None not in numbers.values()
            if not known or type(step) is not int or abs(step) > _LAST_STEP:
                step, numbers = self._cleaned(step, row)
            writer.append(step, numbers)
        except Exception as error:
            self._lost += 1
            self._warn(("log", type(error)), f"a row is lost: {_reason(error)}")

    def log_layers(self, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows of the per-layer table: step, layer, layer_type, operand, statistic, value."""

        def each(writer: RunWriter) -> None:
            given = list(rows)
            with contextlib.suppress(UsageError):
                writer.log_layers(given)
                return
            for row in given:
                try:
                    writer.log_layers([row])
                except UsageError as error:
                    self._warn("layers", f"left out, and others like it: {error}")

        self._do("log_layers", each)

    def event(self, kind: str, step: int, **detail: Any) -> None:
        """Record something that happened (a warning, a shift of scale) in run.json at once; NaN becomes null."""
        self._do("event", lambda writer: writer.event(str(kind), self._step(step)[0], **detail))

    def set_wandb_url(self, url: str | None) -> None:
        """Record the run's address as W&B gave it."""
        self._do("set_wandb_url", lambda writer: writer.set_wandb_url(None if url is None else str(url)))

    def sync(self) -> None:
        """Every row so far is on the disk when this returns."""
        self._do("sync", lambda writer: writer.sync())

    def explain(self, failure: Failure, report: str) -> None:
        """Why the run is about to end badly, for run.json, however the block is left; `report` is failure.md."""
        self._do("explain", lambda writer: writer.explain(failure, report))

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run finished and turn its tables into Parquet; failed where its loss ended in NaN or infinity."""
        self._end("finished", lambda writer: writer.finish(_summary(summary)))

    def fail(self, failure: Failure, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run failed: it ended by itself, badly, and `failure` says why."""
        self._end("failed", lambda writer: writer.fail(failure, _summary(summary)))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._end(ending(error)[0], lambda writer: writer.__exit__(kind, error, trace))

    def _end(self, status: str, how: Callable[[RunWriter], None]) -> None:
        def end(writer: RunWriter) -> None:
            self._writer = None
            if self._lost:
                self._warn("lost", f"{self._lost} rows of the history were lost")
                with contextlib.suppress(Exception):
                    writer.event("rows_lost", int(max(writer.last_step, 0)), rows=self._lost)
            try:
                how(writer)
            except BaseException:
                writer.give_up(status)
                raise

        self._do("the end", end)

    def _do(self, what: str, call: Callable[[RunWriter], None]) -> None:
        """A call whose errors are lines."""
        if self._writer is None:
            self._say_ended(what)
            return
        try:
            call(self._writer)
        except Exception as error:
            self._warn((what, type(error)), f"{what}: {_reason(error)}")

    def _say_ended(self, what: str) -> None:
        if self._writes:
            self._warn("ended", f"{what}: the run has ended; nothing more is recorded")

    def _cleaned(self, step: Any, given: Mapping[Any, Any]) -> tuple[int, dict[str, int | float]]:
        """A step, and the numbers among what was given for it, by dotted names."""
        if isinstance(step, Mapping):  # W&B's order
            given, step = {**step, **given}, None
        if step is None and "step" in given:
            given = dict(given)
            step = given.pop("step")
        number, row = self._step(step)
        for name, value in _flat(given):
            found = _number(value)
            if found is None:
                if value is not None:
                    self._warn(("metric", name), f"metric {name[:80]!r} is left out: {_kind(value)} is no number")
                continue
            if name not in self._columns:
                column = self._columns[name] = _TAKEN.get(name, mask(name))
                self._known |= {name} & {column}
            column = self._columns[name]
            while column in row:
                column += "_"
            row[column] = found
        return number, row

    def _step(self, given: Any) -> tuple[int, dict[str, int | float]]:
        """The step as an integer; where it cannot be one, the next, and what was given as a metric."""
        number = _number(given)
        if number is not None and math.isfinite(number) and number == int(number) and abs(number) <= _LAST_STEP:
            return int(number), {}
        last = -1 if self._writer is None else self._writer.last_step
        following = min(int(last) + 1, _LAST_STEP) if math.isfinite(last) else 0
        if given is None:
            return following, {}
        self._warn("step", f"{_kind(given)} is no step: rows are numbered on, and it is kept as logged_step")
        return following, {} if number is None else {"logged_step": number}

    def _warn(self, about: object, line: str) -> None:
        """One line on stderr; about the same thing once, and not more than `_LINES` in all."""
        if about in self._told or len(self._told) > _LINES:
            return
        self._told.add(about)
        if len(self._told) > _LINES:
            line = "there is more to say; further warnings are not shown"
        say(self.run_id, line)


def say(run_id: str, line: str) -> None:
    """One line on stderr about a run's record; nobody may be there to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"warning: {run_id}: {public_line(line)}", file=sys.stderr)


def writes() -> bool:
    """Whether this process is the one that writes of those that train together: rank 0.

    As torch.distributed says where it is in use, else by RANK, or LOCAL_RANK and NODE_RANK, as launchers set them.
    """
    with contextlib.suppress(Exception):
        distributed = sys.modules["torch.distributed"]
        if distributed.is_available() and distributed.is_initialized():
            return int(distributed.get_rank()) == 0
    ranks = ("RANK",) if os.environ.get("RANK") else ("LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(name, "0").strip() in ("", "0", "-1") for name in ranks)


def _flat(given: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        name = f"{prefix}{key}".encode(errors="replace").decode() or "(no name)"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flat(value, f"{name}.", depth + 1)
        else:
            yield name, value


def _number(value: Any) -> int | float | None:
    """`value` as a number of a table, whatever kind of number it is; None where it is none."""
    if type(value) is float or (type(value) is int and abs(value) <= _LARGEST):
        return value
    try:
        try:
            number = plain(value)
        except TypeError:
            number = float(value)
        if isinstance(number, str):
            number = float(number)
        if number is None or isinstance(number, float):
            return number
        return int(number) if abs(number) <= _LARGEST else float(number)
    except Exception:  # of whatever framework
        return None


def _kind(value: Any) -> str:
    try:
        return f"a {type(value).__name__} ({public_line(value)[:60]})"
    except Exception:  # the text of somebody's own value
        return f"a {type(value).__name__} (...)"


def _summary(given: Any) -> dict[str, Any]:
    return {str(key): value for key, value in given.items()} if isinstance(given, Mapping) else {}


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}" if not isinstance(error, UsageError) else text
