"""W&B's offline files (``run-<id>.wandb``), read through its public command ``wandb leet inspect --json``.

A file that was cut short, by a kill or a copy, gives what it holds up to there; its run is then ``crashed``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.schema import Problem, RecordError, without_paths
from altgrad.runs.wandb_access import inspected, missing_package, reason_of
from altgrad.runs.wandb_pull import Pulled
from altgrad.runs.wandb_records import known_runs, sole_writer

READ_SECONDS = 600


def import_files(path: Path, out: Path) -> Pulled:
    """Make records under `out` of one file, of a run's folder, or of all files in a folder.

    A run that was recorded here or pulled keeps its record. Files of one run (it was resumed) are read in order of
    their names, which is that of their times.

    Raises:
        UsageError: no such file, no file of W&B in the folder, `out` cannot be written, or wandb is not installed.
    """
    if reason := missing_package():
        raise UsageError(reason)
    files = sorted(path.rglob("*.wandb")) if path.is_dir() else [path]
    if not files or not path.exists() or any(file.suffix != ".wandb" for file in files):
        raise UsageError(f"{path}: no file of W&B (run-<id>.wandb) there; give one, or a folder that holds some")
    imported = Pulled("offline files", listed=len(files))
    with sole_writer(out):
        runs: dict[str, tuple[dict[str, Any], dict[int, Mapping[str, Any]]]] = {}
        for file in files:
            try:
                described, rows = read_file(file)
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
                known = isinstance(error, UsageError)
                reason = str(error) if known else f"what it holds is no run ({reason_of(error)})"
                imported.problems.append(Problem(file.name, reason))
                continue
            earlier, earlier_rows = runs.get(described["id"], ({}, {}))
            both = {key: {**earlier.get(key, {}), **described[key]} for key in ("config", "summary")}
            first = {"created": earlier["created"]} if earlier else {}
            runs[described["id"]] = (described | both | first, earlier_rows | rows)
        pulled, local = known_runs(out)
        here = {*local, *(place.rpartition("/")[2] for place in pulled)}  # W&B had all that its file has
        for described, rows in runs.values():
            if described["id"] in here:
                imported.recorded_here += 1
            else:
                imported.add(out, described, [rows[step] for step in sorted(rows)])
    return imported


def read_file(path: Path) -> tuple[dict[str, Any], dict[int, Mapping[str, Any]]]:
    """What one file says of its run, in the form of `altgrad.runs.wandb_fetch`, and its rows by step.

    Raises:
        RecordError: it is no file of W&B, or ends before it names its run.
    """
    try:
        done = inspected(path, seconds=READ_SECONDS)
    except subprocess.TimeoutExpired:
        raise RecordError(f"{path.name}: W&B's reader did not end within {READ_SECONDS} s") from None
    found: dict[str, Any] = {"state": "crashed", "config": {}, "summary": {}, "heartbeat": None}
    rows: dict[int, Mapping[str, Any]] = {}
    for kind, record in _records(done.stdout):
        if kind == "run":
            found["config"] |= record.get("config", {}).get("update", {})
            found |= {"id": record.get("run_id"), "created": record.get("start_time"), "entity": record.get("entity")}
            found |= {"project": record.get("project"), "name": record.get("display_name")}
            found |= {"notes": record.get("notes"), "tags": record.get("tags"), "group": record.get("run_group")}
        elif kind == "config":
            found["config"] |= record.get("update", {})
        elif kind == "summary":
            found["summary"] |= record.get("update", {})
        elif kind == "history":
            row = record.get("item", {})
            rows[int(row.get("_step", len(rows)))] = row
        elif kind == "exit":
            found["state"] = "failed" if record.get("exit_code") else "finished"
    if not isinstance(found.get("id"), str):
        said = without_paths(done.stderr.decode(errors="replace")).strip().splitlines()
        raise RecordError(f"{path.name}: not a readable file of W&B ({reason_of(said[-1]) if said else 'it is empty'})")
    found["config"].pop("_wandb", None)
    times = [row["_timestamp"] for row in rows.values() if isinstance(row.get("_timestamp"), int | float)]
    if times:
        found["heartbeat"] = datetime.fromtimestamp(max(times), UTC).isoformat()
    empty = {"project": "offline", "entity": "offline", "notes": "", "tags": []}
    found |= {key: value for key, value in empty.items() if not found.get(key)}
    return found | {"lines": len(rows), "url": None, "kind": "wandb-file"}, rows


def _records(output: bytes) -> Iterable[tuple[str, dict[str, Any]]]:
    """Kind and content of each whole line; a last line that was cut short is left out."""
    for line in output.splitlines():
        try:
            record = json.loads(line)
            kind = record["type"]
            content = record.get(kind) or {}
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(content, dict):
            yield kind, content
