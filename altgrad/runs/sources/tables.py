"""Logs that are a table: CSV as Lightning, Keras and others write it, and JSON lines, one object a row.

The config is what lies beside the log (hparams.yaml, config.json), or lines of the log that hold one.
"""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from altgrad.config import UsageError
from altgrad.runs.history import EPOCHS, STEPS, TIMES, History, number_of, of_rows
from altgrad.runs.names import normal
from altgrad.runs.sources.found import (
    NO_END,
    Files,
    Found,
    cannot,
    clock,
    config_beside,
    described,
    first_bytes,
    mark_of,
    version_of,
)

_LOGS = re.compile(r"(metrics?|history|logs?|progress|train(ing)?([_-]?log)?|results?|losses|scalars)(\W.*)?", re.I)
"""Names of tables that are logs though they have no step."""
Rows = Callable[[Path, list[str], dict[str, Any]], Iterator[Mapping[str, Any]]]


def find(files: Files) -> list[Found]:
    """The runs: a file each."""
    kinds: dict[str, tuple[str, Rows]] = {
        ".csv": ("CSV", _csv_rows), ".tsv": ("CSV", _csv_rows), ".jsonl": ("JSONL", _json_rows),
        ".ndjson": ("JSONL", _json_rows),
    }  # fmt: skip
    beside = Counter(path.parent for path in files.left if path.suffix in kinds)
    found = []
    for path in files.take(lambda path: path.suffix in kinds):
        tool, rows = kinds[path.suffix]
        if not files.given and (reason := _is_no_log(path, rows)):
            files.passed.append((files.name(path), reason))
            continue
        alone = beside[path.parent] == 1
        folder = path.parent if alone else None
        name = (
            files.name(folder) if folder and folder != files.root and _LOGS.fullmatch(path.stem) else files.name(path)
        )
        name = name.removesuffix(path.suffix)
        version = version_of([path, *(_configs(path, alone))])
        found.append(Found(tool, files.name(path), version, partial(_read, path, name, tool, rows, alone)))
    return found


def _configs(path: Path, alone: bool) -> list[Path]:
    beside = sorted(path.parent.glob("*.yaml")) + sorted(path.parent.glob("*.json")) if alone else []
    return beside or sorted(path.parent.glob(f"{path.stem}.[jy]*"))


def _is_no_log(path: Path, rows: Rows) -> str | None:
    """Why a table in a folder is taken for data, not for the log of a run."""
    try:
        first = list(islice(rows(path, [], {}), 20))
    except (UsageError, ValueError, OSError):
        return None  # its reading says why
    names = {normal(name) for row in first for name in row}
    if not first or names & {*STEPS, *EPOCHS} or _LOGS.fullmatch(path.stem):
        return None
    return "it has no column that is a step; give the file itself to read it"


def _read(path: Path, name: str, tool: str, rows: Rows, alone: bool) -> tuple[dict[str, Any], History]:
    lines: list[str] = []
    config: dict[str, Any] = {}
    first: list[Mapping[str, Any]] = []
    times = array("d")

    def watched() -> Iterator[Mapping[str, Any]]:
        for row in rows(path, lines, config):
            if not first:
                first.append(row)
            for key, value in row.items():
                if key.lower() in TIMES and (moment := _moment(value)):
                    times.append(moment)
            yield row

    try:
        history = of_rows(watched(), texts=tool == "CSV")
        moment = path.stat().st_mtime
    except OSError as error:
        raise cannot(path, error) from None
    if not first:
        raise UsageError("it has no row yet")
    if not history.names:
        raise UsageError("no column of it holds numbers")
    given, more = config_beside(path.parent) if alone else config_beside(path.parent, path.stem)
    begin, end, clocked = clock(np.frombuffer(times)) if times else (moment, moment, [])
    cut = any(line.startswith("rows: the last") for line in lines)
    said = [] if cut else [NO_END.format(tool=f"a {tool} file")]
    whole = sorted((key, value) for key, value in first[0].items() if value not in ("", None))
    project = path.parent.parent.name if alone else path.parent.name
    return described(
        tool, mark_of(tool, path, whole), name, project, config={**given, **config},
        state="crashed" if cut else "finished", created=begin, ended=end, lines=[*said, *lines, *clocked, *more],
        rows=len(history.table),
    ), history  # fmt: skip


def _moment(value: Any) -> float | None:
    """Seconds since 1970, where a value is such a time, in milliseconds or in ISO 8601 too."""
    seconds = number_of(value, True)
    try:
        if seconds is None:
            return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    seconds = seconds / 1000 if 1e12 < seconds < 1e13 else seconds
    return seconds if 1e9 < seconds < 1e10 else None


def _csv_rows(path: Path, lines: list[str], config: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each row as a mapping; a header that comes again, as two runs in one file leave it, begins the columns anew."""
    encoding = "utf-16" if first_bytes(path, 2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with open(path, encoding=encoding, errors="replace", newline="") as file:
        text = (line.replace("\0", "") for line in file)
        head = [line for line in islice(text, 1)]
        if not head or not head[0].strip():
            raise UsageError("it is empty")
        separator = max(",;\t", key=head[0].count)
        header = next(csv.reader(head, delimiter=separator), [])
        names = _columns(header)
        if _numbers(names):
            raise UsageError("its first row has numbers where names of columns should be")
        ended = True

        def whole() -> Iterator[str]:
            nonlocal ended
            for line in text:
                ended = line.endswith(("\n", "\r"))
                yield line

        held: list[str] | None = None
        csv.field_size_limit(10_000_000)
        try:
            for cells in csv.reader(whole(), delimiter=separator):
                if held is not None:
                    yield _row(names, held, lines)
                    held = None
                if not cells or cells == header:
                    continue
                if set(cells) & {"step", "epoch", "Step"} and not _numbers(cells):
                    header, names = cells, _columns(cells)
                    lines.append("rows: the header changes within the file; columns are read by the header above them")
                    continue
                held = [cell.replace(",", ".") for cell in cells] if separator == ";" else cells
        except csv.Error as error:
            lines.append(f"rows: the last ones cannot be read ({error})")
        if held is not None:
            if ended or len(held) == len(names):
                yield _row(names, held, lines)
            else:
                lines.append("rows: the last one is cut short, and left out")


def _columns(header: list[str]) -> list[str]:
    """The names of columns, each once."""
    found: dict[str, None] = {}
    for name in header:
        while name in found:
            name += "_"
        found[name] = None
    return list(found)


def _row(names: list[str], cells: list[str], lines: list[str]) -> dict[str, Any]:
    if len(cells) > len(names) and not any(line.startswith("rows: some are longer") for line in lines):
        lines.append("rows: some are longer than the header; what has no name is left out")
    return dict(zip(names, cells, strict=False))


def _numbers(cells: list[str]) -> bool:
    def is_number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    return any(map(is_number, cells))


def _json_rows(path: Path, lines: list[str], config: dict[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each object that is a row; one that holds a config adds to it."""
    damaged, seen, cut = 0, 0, False
    with open(path, "rb") as file:
        for line in filter(bytes.strip, file):
            seen += 1
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError
            except (ValueError, RecursionError):
                damaged += 1
                cut = not line.endswith(b"\n")
                continue
            held = [key for key in ("config", "hparams", "args", "params") if isinstance(row.get(key), dict)]
            for key in held:
                config |= row.pop(key)
            if not held or any(isinstance(value, int | float) for value in row.values()):
                yield row
    if not seen:
        raise UsageError("it is empty")
    if damaged == seen:
        raise UsageError("no line of it is a JSON object")
    if cut:
        damaged -= 1
        lines.append("rows: the last one is cut short, and left out")
    if damaged:
        lines.append(f"rows: {damaged} are no JSON objects, and left out")
