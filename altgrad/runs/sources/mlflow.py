"""MLflow's runs, from its folder of files (``mlruns``) or its SQLite file.

MLflow says of each run how it ended, and keeps the values of parameters as text: those that read as numbers are some.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
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
_VALUE = "case when is_nan then 'nan' else value end"
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
    named = {path: path.relative_to(folder).parts for path in parts}
    try:
        meta = yaml.safe_load((folder / "meta.yaml").read_text("utf-8")) or {}
        texts = {
            kind: {"/".join(n): path.read_text("utf-8", "replace") for path, (k, *n) in named.items() if k == kind}
            for kind in ("params", "tags")
        }
        metrics = {"/".join(name): path for path, (kind, *name) in named.items() if kind == "metrics"}
        logged = _gathered(
            (name, moment, value, step)
            for name, path in metrics.items()
            for line in path.read_text("utf-8", "replace").splitlines()
            for moment, value, step in [[*line.split(), None, None, None][:3]]
        )
        experiment = _name_of(folder.parent)
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise UsageError(f"meta.yaml: not readable ({type(error).__name__})") from None
    except OSError as error:
        raise cannot(folder, error) from None
    if not isinstance(meta, Mapping):
        raise UsageError("meta.yaml: not readable (no keys and values)")
    if meta.get("lifecycle_stage", "active") == "deleted":
        raise UsageError("it is deleted in MLflow; restore it there")
    return _given({"run_id": folder.name, **meta}, texts["params"], texts["tags"], experiment, *logged)


def _gathered(cells: Iterable[tuple[str, Any, Any, Any]]) -> tuple[History, int | None, list[str]]:
    """The history of name, time, value and step of each number, the last of the times, and what is damaged."""
    read: dict[str, tuple[array[int], array[float]]] = {}
    damaged, last = Counter[str](), None
    for name, moment, value, step in cells:
        steps, values = read.setdefault(name, (array("q"), array("d")))
        try:
            at, number = int(moment), _unbounded(float(value))
            steps.append(len(steps) if step is None else int(step))
        except (ValueError, TypeError, OverflowError):
            damaged[name] += 1
            continue
        values.append(number)
        last = at if last is None else max(last, at)
    found = Gathered()
    for name, (steps, values) in read.items():
        found.add_column(name, np.frombuffer(steps, np.int64), np.frombuffer(values, np.float64))
    lines = [f"metric: {name}: {count} values are damaged, and left out" for name, count in damaged.items()]
    return found.history(), last, lines


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
        metrics = f"select key, timestamp, {_VALUE}, step from metrics where run_uuid = ? order by timestamp, step"
        logged = _gathered(connection.execute(metrics, (run_id,)))
        meta = dict(run) | {"run_name": run["name"], "run_id": run_id}
        experiment = named[0]["name"] if named else ""
    return _given(meta, pairs["params"], pairs["tags"], experiment, *logged)


def _unbounded(value: float) -> float:
    """MLflow's SQLite has the largest float for infinity."""
    return math.copysign(math.inf, value) if abs(value) >= 1.7976931348623157e308 else value


def _given(
    meta: Mapping[str, Any],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    experiment: str,
    history: History,
    last: int | None,
    lines: list[str],
) -> tuple[dict[str, Any], History]:
    run_id = str(meta.get("run_id") or meta.get("run_uuid"))
    name = str(tags.get("mlflow.runName") or meta.get("run_name") or run_id)
    commit = tags.get("mlflow.source.git.commit")
    own = [f"{key}: {value}" for key, value in tags.items() if not key.startswith("mlflow.")]
    ended = _moment(meta.get("end_time")) or _moment(last)
    return described(
        TOOL, run_id, name, experiment, config={key: value_of(value) for key, value in params.items()},
        state=_STATES.get(meta.get("status"), "finished"), created=_moment(meta.get("start_time")), ended=ended,
        notes=tags.get("mlflow.note.content", ""), tags=own, environment={"commit": commit} if commit else {},
        lines=lines, rows=len(history.table),
    ), history  # fmt: skip


def _moment(value: Any) -> float | None:
    """Seconds since 1970 of a time in milliseconds."""
    return value / 1000 if isinstance(value, int) and value else None
