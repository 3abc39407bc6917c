"""Writing a run's record as the run goes, so that a kill at any moment loses at most the row being written.

A record that did not finish can be gone on with (`RunWriter.resume`): what it holds beyond the step where training goes
on is cut, so that the record of an interrupted and resumed run is that of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import PydanticSerializationError, to_json

import altgrad
from altgrad.config import ExperimentConfig, UsageError
from altgrad.imports import code_fingerprint
from altgrad.runs import locks
from altgrad.runs.files import read_bytes, write_bytes, write_text
from altgrad.runs.history import diverged
from altgrad.runs.schema import (
    LAYER_COLUMNS,
    SCHEMA_VERSION,
    Failure,
    Proof,
    arm_id,
    json_ready,
    plain,
    public_line,
    run_id,
)
from altgrad.runs.secrets import in_words, left_out, mask, mask_record
from altgrad.runs.tables import noted, open_table, write_table

TABLES = ("history", "layers")
FSYNC_SECONDS = 5.0
REPORT = "failure.md"
"""The failure as people read it, beside run.json, which holds the same."""
_LAST_STEP = 2**63 - 1
CLOCK_SLACK = 60.0
"""Seconds by which the wall clock may move against the monotonic one before the record says so (also by sleeping)."""
_UNDER_WAY: dict[str, Any] = {"status": "running", "ended": None, "seconds": None, "failure": None}
"""What run.json says of a run that has not ended."""


class RunExists(UsageError):
    """The run is finished, or another process is writing it."""


class NothingToResume(UsageError):
    """There is no record to go on with: none of this id, or one without a checkpoint."""


class RunWriter:
    """Writes one run's record into ``<root>/<run id>/``; a context manager.

    Leaving the block through an exception marks the run ``crashed`` (``interrupted`` for KeyboardInterrupt and
    SystemExit) and lets the exception go on; leaving it without `finish` or `fail` marks it ``interrupted``.
    """

    def __init__(
        self, path: Path, run: dict[str, Any], lock: IO[bytes], seconds: float = 0.0, step: int | float = -math.inf
    ) -> None:
        self.path = path
        self.run = run
        self._lock = lock
        self._tables = {  # open for the run's life
            name: open(path / f"{name}.jsonl", "ab", buffering=0)  # noqa: SIM115
            for name in TABLES
        }
        self._synced = time.monotonic()
        self._started = self._synced - seconds
        self._step = step
        self._clocks = time.time() - self._synced  # what the wall clock is ahead of the monotonic one
        self._closed = False
        self._failure: Failure | None = None
        self._told = left_out(run)
        self._torn: dict[str, int] = {}  # tables that end in a part of a row, and their whole rows' bytes
        self.earlier: str | None = None
        """The folder in which an earlier attempt of this run, which did not finish, was set aside."""

    @classmethod
    def create(
        cls,
        root: Path,
        config: ExperimentConfig,
        *,
        data_fingerprint: Mapping[str, Any],
        environment: Mapping[str, Any],
        title: str | None = None,
    ) -> RunWriter:
        """Open a new record under `root`.

        A record of the same id that did not finish is kept beside the new one as ``<id>.<n>.old``, which readers skip.

        Args:
            root: folder of the runs, made where missing.
            config: the resolved config.
            data_fingerprint: at least ``name`` and ``sha256``.
            environment: versions and device; no host names, users or paths.
            title: what the run is called, where that is not the config's name.

        Raises:
            RunExists: if this id is finished, or is being written by another process.
            UsageError: if the folder cannot be written.
        """
        for key, slug in (("name", config.resolved_name), ("study", config.study)):
            if mask(slug, key) != slug:
                raise UsageError(f"{key}: it looks like a secret, and a run is published by its {key}; give another")
        identity = run_id(config, data_fingerprint)
        path, lock, earlier = _claimed(root, identity)
        run: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "id": identity,
            "arm": arm_id(config, data_fingerprint),
            "created": utc_time(),
            "config": config.model_dump(mode="json", exclude_unset=config.foreign is not None),
            "data": dict(data_fingerprint),
            "environment": json_ready(environment),
            "code": _code(),
            "wandb_url": None,
            "events": [],
            **_UNDER_WAY,
            "summary": {},
        }
        if title is not None:
            run["title"] = title
        writer = cls(path, _written(path, run), lock)
        writer.earlier = earlier
        return writer

    @classmethod
    def resume(
        cls,
        root: Path,
        config: ExperimentConfig,
        *,
        data_fingerprint: Mapping[str, Any],
        environment: Mapping[str, Any],
        find: Callable[[Path], tuple[int, float]],
    ) -> RunWriter:
        """Open the record of a run that was interrupted, crashed or killed, to go on from a step.

        Rows and events of later steps are cut, from JSONL and from closed Parquet tables alike; an event ``resumed``
        is added, with the environment and the code where they are not those of the record.

        Args:
            root, config, data_fingerprint, environment: as for `create`.
            find: is given the run's folder while its lock is held, and says after which step to go on and how many
                seconds had passed; the record is as it was if it raises.

        Raises:
            NothingToResume: no record of this id, or `find` raised it.
            RunExists: the run is finished, has failed by itself, or is being written by another process.
            UsageError: the record is damaged or cannot be written.
        """
        identity = run_id(config, data_fingerprint)
        path = root / identity
        if not (path / "run.json").exists():
            raise NothingToResume(f"{identity}: there is no record to resume in {root}")
        try:
            lock = _lock(path)
        except OSError as error:
            raise no_room(root, error) from None
        try:
            run = _ended_badly(path)
            step, seconds = find(path)
            for name in TABLES:
                _cut(path, name, step)
        except BaseException:
            lock.close()
            raise
        detail = _elsewhere(run, mask(json_ready(environment), "environment"))
        events = [event for event in run["events"] if event["step"] <= step]
        events.append({"kind": "resumed", "step": step, **detail})
        for key in ("message", "tables"):
            run.pop(key, None)
        run = _written(path, run | _UNDER_WAY | {"summary": {}, "events": events})
        (path / REPORT).unlink(missing_ok=True)
        return cls(path, run, lock, seconds, step)

    def adopt(self, earlier: Path, step: int, seconds: float) -> None:
        """Begin with the rows and events of a finished run up to a step, which the event ``continued`` says.

        Args:
            earlier: the folder of its record, which stays as it is.
            step, seconds: where this run goes on, and what it took until then.

        Raises:
            UsageError: that record is damaged.
        """
        try:
            run = json.loads((earlier / "run.json").read_text(encoding="utf-8"))
            for name in TABLES:
                if lines := _lines(_rows(earlier, name), step):
                    self._write_rows(name, lines)
        except BaseException:
            self._release()
            raise
        self._step, self._started = step, self._started - seconds
        self.run["events"] = [event for event in run["events"] if event["step"] <= step]
        self.event("continued", step, run=run["id"], **_elsewhere(run, self.run["environment"]))

    @property
    def run_id(self) -> str:
        """The run's id, which is also its folder's name."""
        return str(self.run["id"])

    @property
    def last_step(self) -> int | float:
        """The highest step that has a row; minus infinity before the first."""
        return self._step

    def log(self, step: int, **metrics: Any) -> None:
        """Append metrics of a step to the history; those of one step may come in several calls.

        Numbers of any kind are taken: NumPy scalars and tensors of one element too. Non-finite values are kept: NaN and
        infinity are what some runs are about. The row is in the file when this returns. Readers merge the rows of a
        step, of which the last has the word, and order steps.

        Raises:
            UsageError: a metric is no number; nothing was written.
            OSError: the row could not be written, for example to a full disk; the rows before it are whole.
        """
        if type(step) is not int or abs(step) > _LAST_STEP:
            step = _step(step)
        if not set(map(type, metrics.values())) <= {float}:  # a check of all costs less than a look at each
            metrics = {name: _number(name, value) for name, value in metrics.items()}
        self.append(step, metrics)

    def append(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """`log` of what has been checked: an integer of 64 bits, and numbers that are floats or small integers."""
        self._write_rows("history", _json_line({"step": step, **metrics}))
        if step > self._step:
            self._step = step
        if "val_loss" in metrics or time.monotonic() - self._synced > FSYNC_SECONDS:
            self.sync()

    def log_layers(self, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows of the per-layer table: step, layer, layer_type, operand, statistic, value.

        Raises:
            UsageError: a row is of another shape; none of `rows` was written.
            OSError: as for `log`.
        """
        lines = []
        for row in rows:
            try:
                step, *names, value = row
            except (TypeError, ValueError):
                step, names, value = None, [], None
            if len(names) != 4 or not all(isinstance(name, str) for name in names):
                raise UsageError(f"a row of the layers table is {', '.join(LAYER_COLUMNS)}, not {row!r:.200}")
            cells = (_step(step), *names, _number(names[-1], value))
            lines.append(_json_line(dict(zip(LAYER_COLUMNS, cells, strict=True))))
        if lines:
            self._write_rows("layers", b"".join(lines))

    def event(self, kind: str, step: int, **detail: Any) -> None:
        """Record something that happened (a warning, a shift of scale) in run.json at once; NaN becomes null."""
        self.run["events"].append({"kind": kind, "step": _step(step), **json_ready(detail)})
        self._write()

    def set_wandb_url(self, url: str | None) -> None:
        """Record the run's address as W&B gave it."""
        self._write(wandb_url=url)

    def finish(self, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run finished and turn its tables into Parquet; another loop's whose loss ended in NaN has failed."""
        self._close("finished", summary=dict(summary or {}))

    def explain(self, failure: Failure, report: str) -> None:
        """Why the run is about to end badly, for run.json, however the block is left; `report` is failure.md.

        Raises:
            OSError: the report cannot be written; run.json will have the failure.
        """
        if not self._closed:
            self._failure = failure
            write_text(self.path / REPORT, mask(report))

    def fail(self, failure: Failure, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run failed: it ended by itself, badly, and `failure` says why."""
        self._failure = failure
        self._close("failed", summary=dict(summary or {}))

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status, message = ending(error)
        try:
            if self._closed:
                return
            if message is not None:
                self.run["message"] = message
            self._close(status)
        except OSError:
            self.give_up(status)
            if error is None:
                raise
        finally:
            self._release()

    def give_up(self, status: str) -> None:
        """End a run whose tables cannot be closed, for example on a full disk: its rows stay as they are.

        Where run.json cannot be written either, readers see by the lock that the run has crashed.
        """
        with contextlib.suppress(OSError):
            if not self._closed:
                self._mark(status)
        self._release()

    def sync(self) -> None:
        """Every row so far is on the disk when this returns."""
        for file in self._tables.values():
            os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _write_rows(self, name: str, lines: bytes) -> None:
        """All of `lines` or nothing: a disk that fills up amid a row is an OSError, and no part of the row stays.

        Where the part cannot be cut off either, no row comes behind it until it can.
        """
        file = self._tables[name].fileno()
        if self._torn and name in self._torn:
            os.ftruncate(file, self._torn[name])
            del self._torn[name]
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            if written := len(lines) - len(left):
                whole = os.fstat(file).st_size - written
                self._torn[name] = whole
                with contextlib.suppress(OSError):
                    os.ftruncate(file, whole)
                    del self._torn[name]
            raise

    def _close(self, status: str, summary: dict[str, Any] | None = None) -> None:
        self.sync()
        try:
            proofs = {name: self._as_parquet(name) for name in TABLES}
            self.run["tables"] = proofs
            if status == "finished" and self.run["config"].get("foreign") is not None:
                self._failure = diverged(pq.read_table(self.path / "history.parquet"))
                status = "failed" if self._failure else status
            self._mark(status, summary)
        except OSError:  # the lines are there; what has become of the others is in the way, also of run.json
            self.run.pop("tables", None)
            for name in TABLES:
                (self.path / f"{name}.parquet").unlink(missing_ok=True)
            raise
        self._closed = True  # a signal from here on finds the run ended: what is left changes nothing that readers see
        for name in TABLES:
            (self.path / f"{name}.jsonl").unlink()
        self._release()

    def _as_parquet(self, name: str) -> dict[str, Any]:
        rows = read_jsonl(self.path / f"{name}.jsonl")
        rows = merged(rows) if name == "history" else rows
        return write_rows(self.path / f"{name}.parquet", rows, self.run_id).model_dump()

    def _release(self) -> None:
        for file in (*self._tables.values(), self._lock):
            file.close()

    def _mark(self, status: str, summary: dict[str, Any] | None = None) -> None:
        jump = time.time() - time.monotonic() - self._clocks
        if abs(jump) > CLOCK_SLACK:
            self.run["events"].append({"kind": "clock_jump", "step": max(self._step, 0), "seconds": round(jump, 1)})
        self._write(
            status=status,
            ended=utc_time(),
            seconds=round(time.monotonic() - self._started, 3),
            summary=json_ready(summary or {}),
            failure=self._failure.to_json() if self._failure else None,
        )

    def _write(self, **changed: Any) -> None:
        self.run |= changed
        self.run |= _written(self.path, self.run, self._told)
        self._told = left_out(self.run)


def _written(path: Path, run: Mapping[str, Any], told: Collection[str] = ()) -> dict[str, Any]:
    """run.json as it was written, without what looks like a secret; says where that stood, but for what was `told`."""
    run = write_json(path / "run.json", run)
    if places := [place for place in left_out(run) if place not in told]:
        line = f"warning: {path.name}: left out of the record, since it looks like a secret: {in_words(places)}"
        with contextlib.suppress(OSError):  # whoever read that may have gone
            print(line, file=sys.stderr)
    return run


def ending(error: BaseException | None) -> tuple[str, str | None]:
    """Status and message of a run whose block was left through `error`, or before its end (None)."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "stopped by Ctrl-C"
    if isinstance(error, SystemExit):
        name = "SIGTERM" if error.code == 128 + signal.SIGTERM else f"exit {public_line(error.code)[:100]}"
        return "interrupted", f"stopped by {name}"
    if error is None:
        return "interrupted", None
    return "crashed", f"{type(error).__name__}: {public_line(error)[:500]}"


def write_json(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """Write a run.json as `write_text` does, and return it as written: without what looks like a secret."""
    run = mask_record(run)
    write_text(path, json.dumps(run, indent=1, sort_keys=True, allow_nan=False))
    return run


def _json_line(row: Mapping[str, Any]) -> bytes:
    """pydantic's encoder takes a fifth of the time of Python's, and keeps NaN and infinity."""
    try:
        return to_json(row, inf_nan_mode="constants") + b"\n"
    except (PydanticSerializationError, UnicodeError):
        raise UsageError(f"a name is not text that can be written: {list(row)!r:.200}") from None


def _step(value: Any) -> int:
    with contextlib.suppress(TypeError):
        if isinstance(step := plain(value), int) and not isinstance(step, bool) and abs(step) <= _LAST_STEP:
            return step
    raise UsageError(f"step {value!r:.80} is not an integer, or too large for 64 bits")


def _number(name: str, value: Any) -> int | float:
    try:
        number = plain(value)
        if isinstance(number, str) or number is None:
            raise TypeError
        if isinstance(number, float):
            return number
        return int(number) if abs(number) <= 2**53 else float(number)  # beyond it, not every integer is a float64
    except (TypeError, OverflowError):
        kind = type(value).__name__
        raise UsageError(f"metric {name!r} is a {kind} ({value!r:.80}); give a number, or leave it out") from None


def is_locked(path: Path) -> bool:
    """Whether a process is writing the record in folder `path`."""
    return locks.is_locked(path / "lock")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; one unparsable last line (a write cut short) is dropped.

    Raises:
        ValueError: for an unparsable line before the last; the message has its number.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no integer step")
        except (ValueError, RecursionError):
            if number == last:
                break
            raise ValueError(f"line {number + 1} is not a row of the table") from None
        rows.append(row)
    return rows


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history with one row a step, steps going up: of the rows of a step the later ones add to the earlier."""
    if all(one["step"] < two["step"] for one, two in pairwise(rows)):
        return rows
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["step"], {}).update(row)
    return [found[step] for step in sorted(found)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], run: str) -> Proof:
    """Write a run's table as Parquet, and return what proves it; a value that a row has not is null."""
    columns = dict.fromkeys(key for row in rows for key in row)
    table = pa.table({key: _column([row.get(key) for row in rows]) for key in columns or {"step": None}})
    return write_table(table, path, run=run)


def _cut(path: Path, name: str, step: int) -> None:
    """Leave the table's rows up to `step`, as JSONL to append to, whichever form it has."""
    write_bytes(path / f"{name}.jsonl", _lines(_rows(path, name), step))
    (path / f"{name}.parquet").unlink(missing_ok=True)


def _rows(path: Path, name: str) -> list[dict[str, Any]]:
    """A table's rows, whichever form it has."""
    lines, table = path / f"{name}.jsonl", path / f"{name}.parquet"
    try:
        if lines.exists():  # a kill while the record was closed leaves both: the lines are whole, the table may be too
            return read_jsonl(lines)
        if table.exists():
            run, proofs = noted(path)
            rows: list[dict[str, Any]] = open_table(table, proofs.get(name), run).read().to_pylist()
            return rows
    except (ValueError, pa.ArrowException) as error:
        damage = f"{path.name}/{name}: damaged ({public_line(error)})"
        raise UsageError(f"{damage}; restore the file, or run again without --resume") from None
    return []


def _lines(rows: list[dict[str, Any]], step: int) -> bytes:
    """The rows up to `step` as JSONL."""
    kept = [row for row in rows if row["step"] is not None and row["step"] <= step]
    texts = [json.dumps({key: value for key, value in row.items() if value is not None}) + "\n" for row in kept]
    return "".join(texts).encode()


def _elsewhere(run: Mapping[str, Any], environment: Any) -> dict[str, Any]:
    """This environment and code, where they are not those of a record."""
    other: dict[str, Any] = {} if run.get("environment") == environment else {"environment": environment}
    return other | ({} if run["code"].get("fingerprint") == code_fingerprint("run") else {"code": _code()})


def _column(values: list[Any]) -> pa.Array:
    """A Parquet column: integers and text as they are, everything numeric else as float64 (1 and 1.0 may mix)."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int} and kinds:
        return pa.array(values, pa.int64())
    return pa.array(values, pa.string() if str in kinds else pa.float64())


def _lock(path: Path) -> IO[bytes]:
    """The record's lock, held until the file is closed; RunExists where another process has it."""
    for _ in range(20):
        try:
            file = open(path / "lock", "ab")  # noqa: SIM115 - held for the run's life
        except FileNotFoundError:  # the record was set aside in between
            path.mkdir(exist_ok=True)
            continue
        try:
            locks.lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path / "lock")):
                return file
        except BlockingIOError:  # a reader that tests the lock holds it for microseconds
            time.sleep(0.01)
        except FileNotFoundError:  # and its lock with it
            path.mkdir(exist_ok=True)
        except OSError as error:
            file.close()
            if error.errno not in locks.NO_LOCKS:
                raise
            remedy = "give a folder on a disk of this machine, or on a file system that has locks"
            raise UsageError(f"--out {path.parent}: no file can be locked there ({error.strerror}); {remedy}") from None
        file.close()
    raise RunExists(f"{path.name} is being written by another process; wait for it or use another --out")


def _ended_badly(path: Path) -> dict[str, Any]:
    """run.json of a run that may go on; `path` is locked, so that "running" means killed."""
    try:
        run: dict[str, Any] = json.loads(read_bytes(path / "run.json"))
        status, schema = run["status"], int(run["schema"])
        sound = isinstance(run["code"], dict) and all(isinstance(event["step"], int) for event in run["events"])
    except (ValueError, LookupError, TypeError):
        sound, status, schema = False, "", 0
    if not sound:
        raise UsageError(f"{path.name}/run.json: damaged; restore the file, or run again without --resume")
    if schema != SCHEMA_VERSION:
        raise UsageError(f"{path.name}/run.json: schema {schema} is not {SCHEMA_VERSION}; run again without --resume")
    if status == "finished":
        raise RunExists(f"{path.name} is already finished: there is nothing to resume; its record is kept")
    if status == "failed":
        remedy = "its record is kept. Change the config, or run it again without --resume"
        raise RunExists(f"{path.name} has failed by itself and would fail again; {remedy}")
    return run


def _claimed(root: Path, identity: str) -> tuple[Path, IO[bytes], str | None]:
    """A run's folder without a record, its lock, and where a record that did not finish was set aside.

    Raises:
        RunExists, UsageError: as `RunWriter.create`.
    """
    path, earlier = root / identity, None
    try:
        while True:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            if not (path / "run.json").exists():
                return path, lock, earlier
            with lock:  # held until the old record is out of the way, so that nobody else begins to move it
                if _is_finished(path):
                    raise RunExists(f"{identity} is already finished; its record is kept. Change the seed or a key")
                earlier = _set_aside(path)
    except OSError as error:
        raise no_room(root, error) from None


def receive(root: Path, identity: str, files: Mapping[str, bytes]) -> Path:
    """Put a record that another machine wrote into a folder of records, whole or not at all; returns its folder.

    A record of the same id that did not finish is set aside, as by `RunWriter.create`. One process at a time receives
    (`sole`).

    Args:
        root: folder of the runs.
        identity: the run's id.
        files: path below `root`, as ``identity/run.json`` -> bytes.

    Raises:
        RunExists: the run is finished here, or is being written by another process.
        UsageError: `files` are of another run, or `root` cannot be written.
    """
    for name in files:
        if name.partition("/")[0] != identity or ".." in name.split("/"):
            raise UsageError(f"{name[:80]!r} came for {identity}: there the data or the code are others; use the same")
    coming = root / ".coming"
    try:
        shutil.rmtree(coming, ignore_errors=True)
        for name, data in files.items():
            (coming / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(coming / name, data)
        path, lock, _ = _claimed(root, identity)
        with lock:
            (path / "lock").unlink()
            os.rename(coming / identity, path)
    except OSError as error:
        raise no_room(root, error) from None
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    return path


@contextlib.contextmanager
def sole(folder: Path, busy: str) -> Iterator[int]:
    """Hold the lock of a folder, made where missing, while the block runs; yields its descriptor.

    Raises:
        UsageError: `busy`, where another process has it; or there can be no such folder or lock.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            place = os.open(folder, os.O_RDONLY)
            held.callback(os.close, place)
            locks.lock(place)
        except BlockingIOError:
            raise UsageError(busy) from None
        except OSError as error:
            raise no_room(folder, error) from None
        yield place


def _is_finished(path: Path) -> bool:
    try:
        return bool(json.loads(read_bytes(path / "run.json")).get("status") == "finished")
    except (ValueError, AttributeError):
        return False  # a damaged record is set aside, not overwritten


def _set_aside(path: Path) -> str:
    number = 1
    while (target := path.with_name(f"{path.name}.{number}.old")).exists():
        number += 1
    path.rename(target)
    return target.name


def utc_time(moment: datetime | None = None) -> str:
    """A moment, by default now, as records have it: ISO 8601 to the second, in UTC."""
    moment = moment or datetime.now(UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def no_room(root: Path, error: OSError) -> UsageError:
    """The line for a folder of records that cannot be written."""
    return UsageError(f"--out {root}: cannot be written ({error.strerror}); give a folder you may write to")


def _code() -> dict[str, str]:
    return {"version": altgrad.__version__, "fingerprint": code_fingerprint("run")}
