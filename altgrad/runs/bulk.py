"""The histories of many runs as one Arrow table: thousands of runs, a few columns or all, read without pandas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altgrad.config import UsageError
from altgrad.runs.files import read_bytes
from altgrad.runs.processor import cores
from altgrad.runs.schema import Problem, RecordError
from altgrad.runs.site_names import site_names
from altgrad.runs.store import PACKED, Held, packed_table, read_table, reason_of, record_places
from altgrad.runs.tables import is_number, noted, read_columns, read_digests

_KEYS = ("run_id", "step")


def read_histories(
    sources: Iterable[Path] | None = None, columns: Sequence[str] | None = None
) -> tuple[pa.Table, tuple[Problem, ...]]:
    """Every history under `sources`, and what could not be read.

    Only the tables are read, and of run.json what proves them, so runs of any status are there, by their folder's name.
    A run that two sources hold is taken from the first. Rows are as they were written: a step that is there twice is
    there twice. Checked are the tables' footers and the checksums of the pages that are read, not the sha256 of all
    bytes, which would cost more than a twentieth of the time.

    Args:
        sources: folders of records; default: `default_sources`.
        columns: metrics; default: all. One that a run has not is null in its rows; one that a loop called run_id is
            left out.

    Returns:
        A table with columns run_id (dictionary), step (integer) and the metrics (float64, or float32 where every run's
        file has that), and the problems.

    Raises:
        UsageError: no run has one of `columns`.
    """
    problems: list[Problem] = []
    tables: list[pa.Table] = []
    taken: set[str] = set()
    held = Held()
    reading: list[tuple[str, Future[pa.Table]]] = []
    with ThreadPoolExecutor(cores()) as pool:  # a file is read and decoded without Python's lock
        for folder, where in record_places(sources, problems):
            if folder.name not in taken and not (folder / PACKED).exists():
                taken.add(folder.name)
                reading.append((where, pool.submit(_history, folder, columns)))
            elif (folder / PACKED).exists():
                try:
                    table = packed_table(folder / "history.parquet", read_digests(folder).get("history"))
                except (OSError, ValueError, pa.ArrowException) as error:
                    problems.append(Problem(where, reason_of(error)))
                    continue
                runs = table["run_id"].cast(pa.string())
                problems += held.twice(folder, where, runs.unique().to_pylist()).values()
                tables.append(table.filter(pc.invert(pc.is_in(runs, pa.array(taken, pa.string())))))
                taken |= set(runs.unique().to_pylist())
        for where, read in reading:
            try:
                tables.append(read.result())
            except (OSError, ValueError, pa.ArrowException) as error:
                problems.append(Problem(where, reason_of(error)))
    names = [table.column_names for table in tables]
    known = dict.fromkeys(name for own in names for name in own)
    wanted = dict.fromkeys(name for name in (known if columns is None else columns) if name not in _KEYS)
    if missing := [name for name in wanted if name not in known]:
        raise UsageError(f"no run has a metric {missing[0][:80]!r}; altgrad runs show ID lists those of a run")
    if not tables:
        return pa.table({"run_id": pa.array([], pa.string()), "step": pa.array([], pa.int64())}), tuple(problems)
    chosen = [*_KEYS, *wanted]
    tables = [
        table.select([name for name in chosen if name in own])
        for table, own in zip(tables, map(set, names), strict=True)
    ]
    return pa.concat_tables(tables, promote_options="permissive").select(chosen), tuple(problems)


def _history(folder: Path, columns: Sequence[str] | None) -> pa.Table:
    """The history in a run's folder: run_id, step (int64), and metrics in float64, or float32 where the file has that.

    Raises:
        OSError, ValueError, pa.ArrowException: it is damaged, or a column is missing or of the wrong kind.
    """
    path, where = folder / "history.parquet", f"{folder.name}/history"
    if path.exists():
        try:
            run, proofs = noted(folder)
            names: dict[str, str] = {}

            def asked(schema: pa.Schema) -> list[str]:
                names.update(_read_as(folder, schema.names))
                own = [own for own, name in names.items() if columns is None or name in ("step", *columns)]
                for field in schema:
                    if field.name in own and not is_number(field.type):
                        raise ValueError(f"a value of column {field.name!r} is not a number")
                return own

            table = read_columns(path, proofs.get("history"), run, asked)
            table = table.rename_columns([names[name] for name in table.column_names])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RecordError(f"{where}: damaged ({reason_of(error)}); restore the file") from None
    else:
        frame = read_table(folder, "history")
        table = pa.Table.from_pandas(frame.rename(columns=_read_as(folder, list(frame))), preserve_index=False)
    if "run_id" in table.column_names:  # a metric that a loop called so
        table = table.drop_columns("run_id")
    kinds = {field.name: field.type for field in table.schema}
    if "step" not in kinds or (len(table) and not pa.types.is_integer(kinds["step"])):
        raise RecordError(f"{where}: no column step of integers; restore the file")
    wanted = {name: kind if kind == pa.float32() else pa.float64() for name, kind in kinds.items()}
    wanted["step"] = pa.int64()
    same = wanted == kinds and len(kinds) == table.num_columns
    table = table.replace_schema_metadata() if same else table.cast(pa.schema(wanted), safe=False)
    run = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), pa.array([folder.name], pa.string()))
    return table.add_column(0, "run_id", run)


def _read_as(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Name -> column under which it is read: another loop's metrics have names of their own."""
    same = {name: name for name in names}
    found = {"step": "step", **site_names([folder]).columns(name for name in names if name != "step")}
    if found.items() <= same.items():
        return same
    foreign = json.loads(read_bytes(folder / "run.json"))["config"].get("foreign") is not None
    return found if foreign else same
