"""W&B's offline files (``run-<id>.wandb``), read through its public command ``wandb leet inspect --json``.

A file that was cut short, by a kill or a copy, gives what it holds up to there; its run is then ``crashed``.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.history import History, of_wandb
from altgrad.runs.sources.found import Files, Found, iso, version_of
from altgrad.runs.wandb_access import Inspector, missing_package

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
    inspect = Inspector(READ_SECONDS)
    return [Found(TOOL, paths[0].name, version_of(paths), partial(_read, paths, inspect)) for paths in runs.values()]


def _read(paths: list[Path], inspect: Inspector) -> tuple[dict[str, Any], History]:
    """What the files of one run say, in order of their names, which is that of their times."""
    if reason := missing_package():
        raise UsageError(reason)
    given, problems = dict[str, Any](), list[str]()
    history = of_wandb(row for path in paths for row in _rows(path, inspect, given, problems))
    if not given:
        raise UsageError("; ".join(problems))
    return {**given, "lines": len(history.table), "lines_of_source": problems}, history


def _rows(path: Path, inspect: Inspector, given: dict[str, Any], problems: list[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of one file; puts what it says of its run into `given`, in the form of `altgrad.runs.wandb_fetch`."""
    found: dict[str, Any] = {"state": "crashed", "config": {}, "summary": {}}
    last = -math.inf
    with inspect(path) as (lines, reason):
        for kind, record in _records(lines):
            if kind == "run":
                found["config"] |= record.get("config", {}).get("update", {})
                found |= {"id": record.get("run_id"), "created": record.get("start_time")}
                found |= {"project": record.get("project") or "offline", "entity": record.get("entity") or "offline"}
                found |= {"name": record.get("display_name"), "group": record.get("run_group")}
                found |= {"notes": record.get("notes") or "", "tags": record.get("tags") or []}
                found["environment"] = _environment(record)
            elif kind in ("config", "summary"):
                found[kind] |= record.get("update", {})
            elif kind == "exit":
                found["state"] = "failed" if record.get("exit_code") else "finished"
            elif kind == "history" and isinstance(found.get("id"), str):
                row = record.get("item", {})
                if isinstance(moment := row.get("_timestamp"), int | float):
                    last = max(last, moment)
                yield row
    if not isinstance(found.get("id"), str):
        problems.append(f"{path.name}: not a readable file of W&B ({reason or 'it is empty'})")
        return
    if reason:
        problems.append(f"file: W&B's reader {reason}")
    found["config"].pop("_wandb", None)
    for key in ("config", "summary"):
        found[key] = {**given.get(key, {}), **found[key]}
    found["heartbeat"] = iso(last) or given.get("heartbeat")
    given |= found | {"created": given.get("created", found["created"]), "url": None, "kind": "wandb-file"}


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    """The commit, the Python and the system that a run was made with, as far as W&B says."""
    telemetry, git = record.get("telemetry") or {}, record.get("git") or {}
    said = {
        "python": telemetry.get("python_version"), "system": telemetry.get("platform"), "commit": git.get("commit"),
        "wandb": telemetry.get("cli_version"),
    }  # fmt: skip
    return {key: str(value) for key, value in said.items() if value}


def _records(lines: Iterable[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and content of each whole line; a last line that was cut short is left out."""
    for line in lines:
        try:
            record = json.loads(line)
            kind = record["type"]
            content = record.get(kind) or {}
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(content, dict):
            yield kind, content
