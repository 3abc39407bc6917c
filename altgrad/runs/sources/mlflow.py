"""MLflow's runs, from its folder of files (``mlruns``) or its SQLite file.

MLflow says of each run how it ended, and keeps the values of parameters as text: those that read as numbers are some.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from altgrad.config import UsageError
from altgrad.runs.history import Gathered, History
from altgrad.runs.schema import digest
from altgrad.runs.sources.found import Files, Found, cannot, described, value_of, version_of
from altgrad.runs.sources.sqlite import columns_of, is_sqlite, opened, rows

TOOL = "MLflow"
_RUNS = """
select run_uuid as id, status, end_time, name, (select count(*) from metrics where metrics.run_uuid = runs.run_uuid)
from runs where lifecycle_stage = 'active' order by start_time
"""
_STATES = {
    "RUNNING": "running", "SCHEDULED": "running", "FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted",
    1: "running", 2: "running", 3: "finished", 4: "failed", 5: "interrupted",
}  # fmt: skip


def find(files: Files) -> list[Found]:
    """The runs of every store below the folder; deleted ones are left out."""
    found = []
    runs: dict[Path, list[Path]] = {
        path.parent: [] for path in files.left if path.name == "meta.yaml" and _is_run(path.parent)
    }
    for path in files.take(lambda path: not runs.keys().isdisjoint(path.parents)):
        folder = next(each for each in path.parents if each in runs)
        if path.relative_to(folder).parts[0] in ("metrics", "params", "tags"):
            runs[folder].append(path)
    for folder, parts in runs.items():
        read = partial(_of_files, folder, parts)
        found.append(Found(TOOL, files.name(folder), version_of([folder / "meta.yaml", *parts]), read))
    for path in files.take(lambda path: is_sqlite(path) and _is_mlflow(path)):
        with opened(path) as connection:
            for run in rows(connection, _RUNS):
                name, version = (
                    f"{files.name(path)}, run {run['name'] or run['id']}",
                    digest(TOOL, *map(str, tuple(run))),
                )
                found.append(Found(TOOL, name, version[:16], partial(_of_sqlite, path, run["id"])))
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "metrics").is_dir() or (folder / "params").is_dir()


def _is_mlflow(path: Path) -> bool:
    try:
        with opened(path) as connection:
            return {"run_uuid", "experiment_id"} <= columns_of(connection, "runs")
    except UsageError:
        return False


def _of_files(folder: Path, parts: list[Path]) -> tuple[dict[str, Any], History]:
    try:
        meta = yaml.safe_load((folder / "meta.yaml").read_text("utf-8")) or {}
        texts: dict[str, dict[str, str]] = {"params": {}, "tags": {}}
        found, times, lines = Gathered(), array("q"), []
        for path in parts:
            kind, *name = path.relative_to(folder).parts
            if kind != "metrics":
                texts[kind]["/".join(name)] = path.read_text("utf-8", "replace")
                continue
            steps, values = array("q"), array("d")
            for line in path.read_text("utf-8", "replace").splitlines():
                try:
                    moment, value, *step = line.split()
                    cell = int(moment), float(value), int(step[0]) if step else len(steps)
                except (ValueError, IndexError):
                    lines.append(f"metric: {'/'.join(name)}: a line is cut short, and left out")
                    continue
                times.append(cell[0])
                values.append(cell[1])
                steps.append(cell[2])
            found.add_column("/".join(name), np.frombuffer(steps, np.int64), np.frombuffer(values, np.float64))
        experiment = _name_of(folder.parent)
    except (yaml.YAMLError, AttributeError) as error:
        raise UsageError(f"meta.yaml: not readable ({type(error).__name__})") from None
    except OSError as error:
        raise cannot(folder, error) from None
    if meta.get("lifecycle_stage", "active") == "deleted":
        raise UsageError("it is deleted in MLflow; restore it there")
    return _given(meta, texts["params"], texts["tags"], experiment, found.history(), times, lines)


def _name_of(experiment: Path) -> str:
    path = experiment / "meta.yaml"
    given = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else None
    return str(given["name"]) if isinstance(given, Mapping) and given.get("name") else experiment.name


def _of_sqlite(path: Path, run_id: str) -> tuple[dict[str, Any], History]:
    with opened(path) as connection:
        (run,) = rows(connection, "select * from runs where run_uuid = ?", run_id)
        named = rows(connection, "select name from experiments where experiment_id = ?", run["experiment_id"])
        pairs = {
            table: {
                row["key"]: row["value"]
                for row in rows(connection, f"select key, value from {table} where run_uuid = ?", run_id)
            }
            for table in ("params", "tags")
        }
        cells: dict[str, tuple[array[int], array[float]]] = {}
        times = array("q")
        metrics = "select key, value, timestamp, step, is_nan from metrics where run_uuid = ? order by timestamp, step"
        for row in connection.execute(metrics, (run_id,)):
            steps, values = cells.setdefault(row["key"], (array("q"), array("d")))
            steps.append(row["step"])
            values.append(math.nan if row["is_nan"] else _unbounded(row["value"]))
            times.append(row["timestamp"])
        found = Gathered()
        for name, (steps, values) in cells.items():
            found.add_column(name, np.frombuffer(steps, np.int64), np.frombuffer(values, np.float64))
        meta = dict(run) | {"run_name": run["name"], "run_id": run_id}
        experiment = named[0]["name"] if named else ""
    return _given(meta, pairs["params"], pairs["tags"], experiment, found.history(), times, [])


def _unbounded(value: float) -> float:
    """MLflow's SQLite has the largest float for infinity."""
    return math.copysign(math.inf, value) if abs(value) >= 1.7976931348623157e308 else value


def _given(
    meta: Mapping[str, Any],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    experiment: str,
    history: History,
    times: array[int],
    lines: list[str],
) -> tuple[dict[str, Any], History]:
    run_id = str(meta.get("run_id") or meta.get("run_uuid"))
    name = str(tags.get("mlflow.runName") or meta.get("run_name") or run_id)
    commit = tags.get("mlflow.source.git.commit")
    own = [f"{key}: {value}" for key, value in tags.items() if not key.startswith("mlflow.")]
    ended = _moment(meta.get("end_time")) or (max(times) / 1000 if times else None)
    return described(
        TOOL, run_id, name, experiment, config={key: value_of(value) for key, value in params.items()},
        state=_STATES.get(meta.get("status"), "finished"), created=_moment(meta.get("start_time")), ended=ended,
        notes=tags.get("mlflow.note.content", ""), tags=own, environment={"commit": commit} if commit else {},
        lines=lines, rows=len(history.table),
    ), history  # fmt: skip


def _moment(value: Any) -> float | None:
    """Seconds since 1970 of a time in milliseconds."""
    return value / 1000 if isinstance(value, int) and value else None
