"""trackio's runs: a SQLite file a project, rows of metrics as JSON; early versions know a run by its name alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.history import History, of_rows
from altgrad.runs.schema import digest
from altgrad.runs.sources.found import NO_END, Files, Found, described, mark_of
from altgrad.runs.sources.sqlite import columns_of, is_sqlite, opened, rows

TOOL = "trackio"


def find(files: Files) -> list[Found]:
    """The runs of every project below the folder."""
    found = []
    for path in files.take(lambda path: is_sqlite(path) and _is_trackio(path)):
        with opened(path) as connection:
            key = _key(connection)
            question = f"select {key} as run, max(run_name) as name, count(*), max(id) from metrics group by {key}"
            for run in rows(connection, question):
                version = digest(TOOL, path.stem, *map(str, tuple(run)))[:16]
                found.append(
                    Found(TOOL, f"{files.name(path)}, run {run['name']}", version, partial(_read, path, run["run"]))
                )
    return found


def _key(connection: Any) -> str:
    return "run_id" if "run_id" in columns_of(connection, "metrics") else "run_name"


def _is_trackio(path: Path) -> bool:
    try:
        with opened(path) as connection:
            return {"run_name", "step", "metrics"} <= columns_of(connection, "metrics")
    except UsageError:
        return False


def _read(path: Path, run: str) -> tuple[dict[str, Any], History]:
    lines: list[str] = []
    with opened(path) as connection:
        key = _key(connection)
        logged = rows(connection, f"select * from metrics where {key} is ? order by id", run)
        configs = []
        if key in columns_of(connection, "configs"):
            configs = rows(connection, f"select config from configs where {key} is ?", run)
    history = of_rows(_rows(logged, lines), ("step",))
    config = (_object(configs[0]["config"]) if configs else None) or {}
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    name = str(logged[0]["run_name"])
    mark = mark_of(TOOL, Path(path.stem) / str(run), logged[0]["timestamp"])
    return described(
        TOOL, mark, name, path.stem, config=own, created=logged[0]["timestamp"], ended=logged[-1]["timestamp"],
        lines=[NO_END.format(tool=TOOL), *lines], rows=len(history.table),
    ), history  # fmt: skip


def _rows(logged: list[Any], lines: list[str]) -> Iterator[Mapping[str, Any]]:
    damaged = 0
    for row in logged:
        given = _object(row["metrics"])
        damaged += given is None
        yield {**(given or {}), "step": row["step"]}
    if damaged:
        lines.append(f"metrics: {damaged} rows are damaged, and left out")


def _object(text: str | bytes) -> Any:
    try:
        given = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return given if isinstance(given, dict) else None
