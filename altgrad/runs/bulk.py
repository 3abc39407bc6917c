"""The histories of many runs as one Arrow table: thousands of runs, a few columns or all, read without pandas."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem

from altgrad.config import UsageError
from altgrad.runs.schema import Problem, RecordError
from altgrad.runs.store import PACKED, Sliced, is_number, read_table, reason_of, record_places

_KEYS = ("run_id", "step")


def read_histories(
    sources: Iterable[Path] | None = None, columns: Sequence[str] | None = None
) -> tuple[pa.Table, tuple[Problem, ...]]:
    """Every history under `sources`, and what could not be read.

    Only the tables are read: run.json is not, so runs of any status are there, by their folder's name. A run that two
    sources hold is taken from the first. Rows are as they were written: a step that is there twice is there twice.

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
    if columns is not None:
        columns = [name for name in dict.fromkeys(columns) if name not in _KEYS]
    problems: list[Problem] = []
    finished: dict[str, tuple[Path, str]] = {}
    tables: list[pa.Table] = []
    taken: set[str] = set()
    for folder, where in record_places(sources):
        try:
            if (folder / PACKED).exists():
                packed = Sliced.read(folder / "history.parquet")
                fresh = {run: place for run, place in packed.places.items() if run not in taken}
                tables += [_named(packed.table.slice(*place), run) for run, place in fresh.items()]
                taken |= set(fresh)
            elif folder.name not in taken:
                taken.add(folder.name)
                if (folder / "history.parquet").exists():
                    finished[folder.name] = (folder, where)
                else:
                    frame = read_table(folder, "history")
                    tables.append(_named(pa.Table.from_pandas(frame, preserve_index=False), folder.name))
        except (RecordError, OSError, ValueError, pa.ArrowException) as error:
            problems.append(Problem(where, reason_of(error)))
    if finished:
        table, damaged = _read_files([folder for folder, _ in finished.values()], columns)
        problems += [Problem(finished[name][1], reason) for name, reason in damaged.items()]
        tables.insert(0, table)
    known = dict.fromkeys(name for table in tables for name in table.column_names)
    chosen = [*_KEYS, *(name for name in (known if columns is None else columns) if name not in _KEYS)]
    if missing := [name for name in chosen[2:] if name not in known]:
        raise UsageError(f"no run has a metric {missing[0][:80]!r}; altgrad runs show ID lists those of a run")
    tables = [table.select([name for name in chosen if name in table.column_names]) for table in tables]
    if not tables:
        return pa.table({"run_id": pa.array([], pa.string()), "step": pa.array([], pa.int64())}), tuple(problems)
    whole = pa.concat_tables(tables, promote_options="permissive")
    return whole.select([name for name in chosen if name in whole.column_names]), tuple(problems)


def _fragment(folder: Path) -> ds.ParquetFileFragment | str:
    """A finished run's file with its footer read, or why it cannot be used."""
    path, where = folder / "history.parquet", f"{folder.name}/history"
    fragment = ds.ParquetFileFormat().make_fragment(str(path), LocalFileSystem())
    try:
        fragment.ensure_complete_metadata()
    except (OSError, pa.ArrowException) as error:
        return f"{where}: damaged ({_pathless(error, folder)}); restore the file"
    schema = fragment.physical_schema
    if "step" not in schema.names or not pa.types.is_integer(schema.field("step").type):
        return f"{where}: no column step of integers; restore the file"
    if strange := [field.name for field in schema if not is_number(field.type)]:
        return f"{where}: a value of column {strange[0]!r} is not a number; restore the file"
    return fragment


def _read_files(folders: Sequence[Path], columns: Sequence[str] | None) -> tuple[pa.Table, dict[str, str]]:
    """The histories of finished runs in the order of `folders`, and by run why one cannot be used."""
    if columns is not None:
        # Most of the time goes into footers, which have every column: where nothing is amiss one look is enough.
        schema = pa.schema([("step", pa.int64()), *((name, pa.float64()) for name in columns)])
        paths = [str(folder / "history.parquet") for folder in folders]
        with contextlib.suppress(OSError, pa.ArrowException):
            data = ds.FileSystemDataset.from_paths(paths, schema, ds.ParquetFileFormat(), LocalFileSystem())
            table = _scan(data, folders)
            if not table["step"].null_count and all(table[name].null_count < len(table) for name in schema.names):
                return table, {}
    with ThreadPoolExecutor(4) as pool:  # a footer is read and parsed without Python's lock
        footers = dict(zip(folders, pool.map(_fragment, folders), strict=True))
    damaged = {folder.name: reason for folder, reason in footers.items() if isinstance(reason, str)}
    sound = {folder: fragment for folder, fragment in footers.items() if not isinstance(fragment, str)}
    kinds: dict[str, set[pa.DataType]] = {}
    for fragment in sound.values():
        for field in fragment.physical_schema:
            if field.name != "run_id" if columns is None else field.name in ("step", *columns):
                kinds.setdefault(field.name, set()).add(field.type)
    figures = {name: pa.float32() if found == {pa.float32()} else pa.float64() for name, found in kinds.items()}
    schema = pa.schema([(name, pa.int64() if name == "step" else kind) for name, kind in figures.items()])

    def scan() -> pa.Table:
        data = ds.FileSystemDataset(list(sound.values()), schema, ds.ParquetFileFormat(), LocalFileSystem())
        return _scan(data, list(sound))

    try:
        return scan(), damaged
    except (OSError, pa.ArrowException):  # rows of some file are damaged, although its footer is not
        for folder, fragment in list(sound.items()):
            try:
                fragment.to_table(schema=schema)
            except (OSError, pa.ArrowException) as error:
                damaged[folder.name] = f"{folder.name}/history: damaged ({_pathless(error, folder)}); restore the file"
                del sound[folder]
        return scan(), damaged


def _scan(data: ds.Dataset, folders: Sequence[Path]) -> pa.Table:
    """All rows with the columns of the data set's schema, and run_id before them."""
    table = data.to_table(columns=[*data.schema.names, "__fragment_index"])
    places = table["__fragment_index"].combine_chunks()
    runs = pa.DictionaryArray.from_arrays(places, pa.array([folder.name for folder in folders], pa.string()))
    return table.drop_columns("__fragment_index").add_column(0, "run_id", runs)


def _pathless(error: Exception, folder: Path) -> str:
    return reason_of(str(error).replace(str(folder), folder.name))


def _named(table: pa.Table, run: str) -> pa.Table:
    """`table` with the column run_id before the others."""
    if "run_id" in table.column_names:  # a metric that a loop called so
        table = table.drop_columns("run_id")
    codes = np.zeros(len(table), dtype=np.int32)
    return table.add_column(0, "run_id", pa.DictionaryArray.from_arrays(codes, pa.array([run], pa.string())))
