"""Writing a run's record as the run goes, so that a kill at any moment loses at most the row being written."""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

import altgrad
from altgrad.config import ExperimentConfig, UsageError, one_line
from altgrad.runs.schema import LAYER_COLUMNS, SCHEMA_VERSION, Failure, arm_id, code_fingerprint, run_id, without_paths

FSYNC_SECONDS = 5.0


class RunExists(UsageError):
    """The run is finished, or another process is writing it."""


class RunWriter:
    """Writes one run's record into ``<root>/<run id>/``; a context manager.

    Leaving the block through an exception marks the run ``crashed`` (``interrupted`` for KeyboardInterrupt and
    SystemExit) and lets the exception go on; leaving it without `finish` or `fail` marks it ``interrupted``.
    """

    def __init__(self, path: Path, run: dict[str, Any], lock: IO[bytes]) -> None:
        self.path = path
        self.run = run
        self._lock = lock
        self._history = open(path / "history.jsonl", "ab", buffering=0)  # noqa: SIM115 - open for the run's life
        self._layers = open(path / "layers.jsonl", "ab", buffering=0)  # noqa: SIM115
        self._synced = self._started = time.monotonic()
        self._closed = False

    @classmethod
    def create(
        cls,
        root: Path,
        config: ExperimentConfig,
        *,
        data_fingerprint: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> RunWriter:
        """Open a new record under `root`.

        A record of the same id that did not finish is kept beside the new one as ``<id>.<n>.old``, which readers skip.

        Args:
            root: folder of the runs, made where missing.
            config: the resolved config.
            data_fingerprint: at least ``name`` and ``sha256``.
            environment: versions and device; no host names, users or paths.

        Raises:
            RunExists: if this id is finished, or is being written by another process.
            UsageError: if the folder cannot be written.
        """
        identity = run_id(config, data_fingerprint)
        path = root / identity
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
            if (path / "run.json").exists():
                if _is_finished(path):
                    lock.close()
                    raise RunExists(f"{identity} is already finished; its record is kept. Change the seed or a key")
                lock.close()
                _set_aside(path)
                path.mkdir()
                lock = _lock(path)
        except OSError as error:
            raise UsageError(
                f"--out {root}: cannot be written ({error.strerror}); give a folder you may write to"
            ) from None
        now = _now()
        run: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "id": identity,
            "arm": arm_id(config, data_fingerprint),
            "status": "running",
            "created": now,
            "ended": None,
            "seconds": None,
            "config": config.model_dump(mode="json"),
            "data": dict(data_fingerprint),
            "environment": dict(environment),
            "code": {"version": altgrad.__version__, "fingerprint": code_fingerprint()},
            "wandb_url": None,
            "events": [],
            "failure": None,
            "summary": {},
        }
        write_json(path / "run.json", run)
        return cls(path, run, lock)

    @property
    def run_id(self) -> str:
        """The run's id, which is also its folder's name."""
        return str(self.run["id"])

    def log(self, step: int, **metrics: float) -> None:
        """Append one history row. Non-finite values are kept: NaN and infinity are what some runs are about."""
        self._append(self._history, {"step": step, **metrics})
        if "val_loss" in metrics or time.monotonic() - self._synced > FSYNC_SECONDS:
            self._sync()

    def log_layers(self, rows: Iterable[tuple[int, str, str, str, str, float]]) -> None:
        """Append rows of the per-layer table: step, layer, layer_type, operand, statistic, value."""
        lines = [json.dumps(dict(zip(LAYER_COLUMNS, row, strict=True)), default=float) for row in rows]
        if lines:
            os.write(self._layers.fileno(), ("\n".join(lines) + "\n").encode())

    def event(self, kind: str, step: int, **detail: Any) -> None:
        """Record something that happened (a warning, a shift of scale) in run.json at once."""
        self.run["events"].append({"kind": kind, "step": step, **detail})
        write_json(self.path / "run.json", self.run)

    def set_wandb_url(self, url: str | None) -> None:
        """Record the run's address as W&B gave it."""
        self.run["wandb_url"] = url
        write_json(self.path / "run.json", self.run)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run finished and turn its tables into Parquet."""
        self._close("finished", summary=dict(summary))

    def fail(self, failure: Failure, summary: Mapping[str, Any] | None = None) -> None:
        """Mark the run failed: it ended by itself, badly, and `failure` says why."""
        self._close("failed", summary=dict(summary or {}), failure=failure)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit):
            self._close("interrupted")
        else:
            self.run["message"] = f"{type(error).__name__}: {without_paths(one_line(error))[:500]}"
            self._close("crashed")

    def _append(self, file: IO[bytes], row: Mapping[str, Any]) -> None:
        os.write(file.fileno(), (json.dumps(row, default=float) + "\n").encode())

    def _sync(self) -> None:
        os.fsync(self._history.fileno())
        os.fsync(self._layers.fileno())
        self._synced = time.monotonic()

    def _close(self, status: str, summary: dict[str, Any] | None = None, failure: Failure | None = None) -> None:
        self._sync()
        self._history.close()
        self._layers.close()
        for name in ("history", "layers"):
            _to_parquet(self.path / f"{name}.jsonl", self.path / f"{name}.parquet")
        self.run |= {
            "status": status,
            "ended": _now(),
            "seconds": round(time.monotonic() - self._started, 3),
            "summary": _json_safe(summary or {}),
            "failure": failure.to_json() if failure else None,
        }
        write_json(self.path / "run.json", self.run)
        for name in ("history", "layers"):
            (self.path / f"{name}.jsonl").unlink()
        self._lock.close()
        self._closed = True


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old or the new file, never a part: temporary file, fsync, replace."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_locked(path: Path) -> bool:
    """Whether a process is writing the record in folder `path`."""
    try:
        with open(path / "lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


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
        except ValueError:
            if number == last:
                break
            raise ValueError(f"line {number + 1} is not a row of the table") from None
        rows.append(row)
    return rows


def _to_parquet(source: Path, target: Path) -> None:
    rows = read_jsonl(source)
    columns = dict.fromkeys(key for row in rows for key in row)
    table = pa.table({key: _column([row.get(key) for row in rows]) for key in columns or {"step": None}})
    temporary = target.with_name(target.name + ".tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, target)


def _column(values: list[Any]) -> pa.Array:
    """A Parquet column: integers and text as they are, everything numeric else as float64 (1 and 1.0 may mix)."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {int} and kinds:
        return pa.array(values, pa.int64())
    return pa.array(values, pa.string() if str in kinds else pa.float64())


def _lock(path: Path) -> IO[bytes]:
    file = open(path / "lock", "wb")  # noqa: SIM115 - held for the run's life
    for attempt in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:  # a reader that tests the lock holds it for microseconds
            if attempt == 19:
                file.close()
                raise RunExists(
                    f"{path.name} is being written by another process; wait for it or use another --out"
                ) from None
            time.sleep(0.01)
    raise AssertionError("unreachable")


def _is_finished(path: Path) -> bool:
    try:
        return bool(json.loads((path / "run.json").read_text()).get("status") == "finished")
    except (ValueError, AttributeError):
        return False  # a damaged record is set aside, not overwritten


def _set_aside(path: Path) -> None:
    number = 1
    while (target := path.with_name(f"{path.name}.{number}.old")).exists():
        number += 1
    path.rename(target)


def _json_safe(value: Any) -> Any:
    """NaN and infinities as null: run.json stays standard JSON."""
    if isinstance(value, dict):
        return {key: _json_safe(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
