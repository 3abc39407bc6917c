"""W&B's offline files (``run-<id>.wandb``), read through its public command ``wandb leet inspect --json``.

A file that was cut short, by a kill or a copy, gives what it holds up to there; its run is then ``crashed``.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.history import History, of_wandb
from altgrad.runs.schema import RecordError, without_paths
from altgrad.runs.sources.found import Files, Found, version_of
from altgrad.runs.wandb_access import inspected, missing_package, reason_of

TOOL = "W&B"
READ_SECONDS = 600


def find(files: Files) -> list[Found]:
    """The runs: the files of one run, which was resumed, are one; what else lies in their folders is W&B's."""
    runs: dict[str, list[Path]] = defaultdict(list)
    taken = files.take(lambda path: path.suffix == ".wandb")
    for path in taken:
        named = re.fullmatch(r"run-(.+)", path.stem)
        runs[named[1] if named else files.name(path)].append(path)
    folders = {path.parent for path in taken if re.match(r"(offline-)?run-", path.parent.name)}
    files.take(lambda path: not folders.isdisjoint(path.parents))
    return [Found(TOOL, paths[0].name, version_of(paths), partial(_read, paths)) for paths in runs.values()]


def _read(paths: list[Path]) -> tuple[dict[str, Any], History]:
    """What the files of one run say, in order of their names, which is that of their times."""
    if reason := missing_package():
        raise UsageError(reason)
    given, rows = dict[str, Any](), dict[int, Mapping[str, Any]]()
    problems = []
    for path in paths:
        try:
            described, own = read_file(path)
        except RecordError as error:
            problems.append(str(error))
            continue
        both = {key: {**given.get(key, {}), **described[key]} for key in ("config", "summary")}
        first = {"created": given["created"]} if given else {}
        given, rows = described | both | first, rows | own
    if not given:
        raise UsageError("; ".join(problems))
    return {**given, "lines": len(rows), "lines_of_source": problems}, of_wandb(rows[step] for step in sorted(rows))


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
            found["environment"] = _environment(record)
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


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    """The commit, the Python and the system that a run was made with, as far as W&B says."""
    telemetry, git = record.get("telemetry") or {}, record.get("git") or {}
    said = {
        "python": telemetry.get("python_version"), "system": telemetry.get("platform"), "commit": git.get("commit"),
        "wandb": telemetry.get("cli_version"),
    }  # fmt: skip
    return {key: str(value) for key, value in said.items() if value}


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
