"""The Parquet files of records, and what proves them: how many rows were written, and the sha256 of the bytes.

A run's proofs are in its run.json (`tables`), those of a packed study in `DIGESTS` beside its files. A table without
proof, as earlier versions wrote it, is read all the same. Pages carry checksums of their own, which tell a flipped bit
where only some columns are read and the bytes of the others never seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from altgrad.config import UsageError, first_mistake
from altgrad.runs.files import read_bytes, write_bytes, write_text
from altgrad.runs.schema import Proof, public_line
from altgrad.runs.stores import StorePath

DIGESTS = "digests.json"
PACKED_TABLES = ("runs", "history", "layers")
MOST_VALUES = 2**24
"""Values that any table may unpack to, however small its file is."""
_UNPACKED, _PACKED = 2, 3
"""Fields of a page's header: its size in memory and in the file."""
_SHORT_HEADER, _HEADER = 2**8, 2**15
"""Bytes that a page's header mostly has, and has at most: four texts of 4,096 and some numbers."""
_USUAL_HEADER = re.compile(
    rb"\x15V\x15(V)\x15(V)(?:\x15V)?[\x1c\x2c\x3c\x4c](?:\x15V|[\x11\x12])+"
    rb"(?:\x1c(?:[\x18\x28](?:\x04.{4}|\x08.{8})|[\x16\x26]V|[\x11\x12])*\x00)?\x00\x00".replace(
        b"V", rb"[\x80-\xff]{0,9}[\x00-\x7f]"
    ),
    re.DOTALL,
)
"""A page's header as Arrow writes it for numbers, with both sizes: a tenth of the time that `_struct` takes."""
_RUN = b"altgrad.run"
"""In a file's metadata: the run whose table it is."""
_PROOFS = TypeAdapter(dict[str, Proof])
_ID, _TABLES = b'\n "id": "', b'\n "tables": '
"""How the writer's run.json lays out what `noted` looks for."""


class NotAsRecorded(ValueError):
    """A table whose bytes are not those that its proof was made of; the message says what is there instead."""


def write_table(table: pa.Table, path: Path, *, run: str | None = None, **how: Any) -> Proof:
    """Write a Parquet file so that a reader sees the old or the new one, and return what proves it.

    The proof is of the bytes as they were made, not as they were read back from the disk.

    Args:
        table: all of it.
        path: of the file.
        run: whose table it is, for the file's metadata.
        how: for `pyarrow.parquet.write_table`.
    """
    if run is not None:
        table = table.replace_schema_metadata({_RUN: run.encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **how)
    data = buffer.getvalue().to_pybytes()
    write_bytes(path, data)
    return _proof(data, table.num_rows)


def _proof(data: bytes, rows: int) -> Proof:
    return Proof(rows=rows, sha256=_sha256(data), footer=_sha256(data[-_footer(data[-8:]) :]))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _footer(end: bytes) -> int:
    """How many bytes of a Parquet file are its footer, by the last eight."""
    return int.from_bytes(end[:4], "little") + 8


def open_table(
    path: Path, proof: Proof | None = None, run: str | None = None, *, coded: bool = False
) -> pq.ParquetFile:
    """A Parquet file, all of whose bytes are as they were recorded; without a proof its pages are checked when read.

    Errors name no path: reasons reach public pages.

    Args:
        path: of the file.
        proof: of the table, where there is one.
        run: whose table it should be.
        coded: text is read as dictionaries.

    Raises:
        NotAsRecorded: it is another table, or a part of it, or its bytes have changed.
        OSError, pa.ArrowException: it is no Parquet file.
    """
    data = read_bytes(path)
    sound = proof is not None and _sha256(data) == proof.sha256
    source = pa.BufferReader(data)
    file = pq.ParquetFile(source, page_checksum_verification=not sound)
    _check_size(file.metadata, len(data))
    if not sound:
        _check_head(file, proof, run)
    _check_pages(file.metadata, source)
    _check_kinds(file.schema_arrow)
    if coded and (text := [field.name for field in file.schema_arrow if is_text(field.type)]):
        return pq.ParquetFile(source, read_dictionary=text, page_checksum_verification=not sound)
    return file


def read_columns(
    path: Path, proof: Proof | None, run: str | None, choose: Callable[[pa.Schema], Collection[str]]
) -> pa.Table:
    """Some columns of a file that stays on the disk; checked are its footer and the pages that are read.

    That takes a third of the time of `open_table`, whose arguments and errors it has.

    Args:
        path: of the file.
        proof: of the table, where there is one.
        run: whose table it should be.
        choose: names the columns, given the schema.
    """
    with pa.PythonFile(path.open(), "r") if isinstance(path, StorePath) else pa.OSFile(str(path)) as source:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        _check_size(file.metadata, source.size())
        if proof is None or _sha256(_end_of(source)) != proof.footer:
            _check_head(file, proof, run)
        schema = file.schema_arrow
        _check_kinds(schema)
        chosen = choose(schema)
        _check_pages(file.metadata, source, chosen)
        return file.read(list(chosen), use_threads=False)


def _check_kinds(schema: pa.Schema) -> None:
    for field in schema:
        if not (is_number(field.type) or is_text(field.type) or pa.types.is_boolean(field.type)):
            raise NotAsRecorded(f"column {field.name!r} holds neither numbers nor text")


def read_coded(
    path: Path, proof: Proof | None = None, run: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """The table of `open_table` with its text as dictionaries, which written out has a gigabyte at most.

    Raises:
        NotAsRecorded, OSError, pa.ArrowException: as `open_table`, or the texts would fill a gigabyte.
    """
    table, size = open_table(path, proof, run, coded=True).read(columns), 0
    for chunk in (chunk for column in table.columns if pa.types.is_dictionary(column.type) for chunk in column.chunks):
        lengths = np.array([len(text or "") for text in chunk.dictionary.to_pylist()], np.int64)
        size += int(lengths[chunk.indices.drop_null().to_numpy()].sum()) if len(lengths) else 0
    if size > 2**30:
        raise NotAsRecorded("its texts are too long for so many rows")
    return table


def _check_size(told: pq.FileMetaData, size: int) -> None:
    """NotAsRecorded for a small file that would be large in memory: no run fills a table with so little.

    The limit is far from what is recorded: 7 values a byte at most. Of a damaged footer only the counts are safe to ask
    for: the description of a column may end the process.
    """
    values = told.num_rows * told.num_columns
    if values > MOST_VALUES + 100 * size:
        raise NotAsRecorded(f"{size:,} bytes that would unpack to {values:,} values: no run writes such a table")
    unpacked = sum(told.row_group(number).total_byte_size for number in range(told.num_row_groups))
    if unpacked > 16 * MOST_VALUES + 1000 * size:
        raise NotAsRecorded(f"{size:,} bytes that would unpack to {unpacked:,}: no run writes such a table")


def _check_pages(told: pq.FileMetaData, source: pa.NativeFile, columns: Collection[str] | None = None) -> None:
    """NotAsRecorded for pages (of `columns`) that unpack to more than `_check_size` allows, whatever a footer says."""
    unpacked, size = 0, source.size()
    try:
        for group in map(told.row_group, range(told.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                if columns is not None and column.path_in_schema not in columns:
                    continue
                place = min(column.dictionary_page_offset or math.inf, column.data_page_offset)
                end = place + column.total_compressed_size if column.num_values else 0  # of no values no page is read
                while place < end:
                    if not 0 <= place < size:
                        raise LookupError
                    page, length = _header(source, place)
                    if min(page[_UNPACKED], page[_PACKED]) < 0:
                        raise NotAsRecorded("a page of it is damaged")
                    unpacked, place = unpacked + page[_UNPACKED], place + length + page[_PACKED]
    except (LookupError, RecursionError):
        raise NotAsRecorded("a page of it is damaged") from None
    if unpacked > 16 * MOST_VALUES + 1000 * size:
        raise NotAsRecorded(f"{size:,} bytes that would unpack to {unpacked:,}: no run writes such a table")


def _header(source: pa.NativeFile, place: int) -> tuple[dict[int, int], int]:
    data = source.read_at(_SHORT_HEADER, place)
    if usual := _USUAL_HEADER.match(data):
        unpacked, packed = (_integer(size, 0)[0] for size in usual.groups())
        return {_UNPACKED: unpacked, _PACKED: packed}, usual.end()
    try:
        return _struct(data, 0)
    except LookupError:
        return _struct(source.read_at(_HEADER, place), 0)


def _struct(data: bytes, place: int) -> tuple[dict[int, int], int]:
    """The integers of a struct in Thrift's compact protocol by their field, with which pages begin; and its end."""
    found, field = dict[int, int](), 0
    while head := data[place]:
        place += 1
        if head >> 4:
            field += head >> 4
        else:
            field, place = _integer(data, place)
        found[field], place = _value(data, place, head & 15)
    return found, place + 1


def _value(data: bytes, place: int, kind: int) -> tuple[int, int]:
    """A value where it is an integer, else 0; and its end. LookupError for what no page begins with."""
    if kind in (1, 2):  # true, false
        return 0, place
    if kind in (4, 5, 6):
        return _integer(data, place)
    if kind == 8:  # bytes
        length, place = _varint(data, place)
        return 0, place + length
    if kind == 12:
        return 0, _struct(data, place)[1]
    raise LookupError


def _integer(data: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 128:
            return value, place
    raise LookupError


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers, or nothing at all."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check_head(file: pq.ParquetFile, proof: Proof | None, run: str | None) -> None:
    """NotAsRecorded for a table that is not the one of the proof, with what it is instead, or that is another run's."""
    owner = (file.metadata.metadata or {}).get(_RUN, b"").decode(errors="replace")
    if owner and run is not None and owner != run:
        raise NotAsRecorded(f"it is the table of run {public_line(owner)[:100]}")
    if proof is not None and file.metadata.num_rows != proof.rows:
        raise NotAsRecorded(f"it has {file.metadata.num_rows:,} rows, and {proof.rows:,} were recorded")
    if proof is not None:
        raise NotAsRecorded("its bytes are not those that were recorded")


def _end_of(source: pa.OSFile) -> bytes:
    """The footer of a Parquet file, or as much as there is of it."""
    size = source.size()
    length = min(_footer(source.read_at(8, max(size - 8, 0))), size)
    found: bytes = source.read_at(length, size - length)
    return found


def noted(folder: Path) -> tuple[str | None, dict[str, Proof]]:
    """The run's id and the proofs in run.json, found without parsing all of it; none where it is damaged."""
    try:
        text = read_bytes(folder / "run.json")
        begin = text.find(_TABLES) + len(_TABLES)
        proofs = _PROOFS.validate_json(text[begin : text.index(b"\n }", begin) + 3]) if begin >= len(_TABLES) else {}
        if not proofs and b'"tables"' in text:  # as another program has laid it out
            run = json.loads(text)
            return run["id"], _PROOFS.validate_python(run.get("tables") or {})
        begin = text.find(_ID) + len(_ID)
        return text[begin : text.index(b'"', begin)].decode() if begin >= len(_ID) else None, proofs
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None, {}


def read_digests(folder: Path) -> dict[str, Proof]:
    """The proofs of a packed study's tables, by their names without suffix; none where nobody has noted them.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        proofs = _PROOFS.validate_json(read_bytes(folder / DIGESTS))
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise ValueError(f"{DIGESTS}: {first_mistake(error)}") from None
    if set(proofs) != {*PACKED_TABLES}:
        raise ValueError(f"{DIGESTS}: it is not of the tables {', '.join(PACKED_TABLES)}")
    return proofs


def write_digests(folder: Path, proofs: Mapping[str, Proof]) -> None:
    """Note the proofs of a packed study beside its tables."""
    text = json.dumps({name: proof.model_dump() for name, proof in proofs.items()}, indent=1, sort_keys=True) + "\n"
    write_text(folder / DIGESTS, text)


def note_digests(folder: Path) -> bool:
    """Note what proves the tables of a packed study as they are now, where it has no digests; False where it has.

    Raises:
        UsageError: a table cannot be read, or is not the one that the digests are of.
    """
    known = proofs = {}
    try:
        known = read_digests(folder)
        for name in PACKED_TABLES:
            path = folder / f"{name}.parquet"
            rows = open_table(path, known.get(name)).metadata.num_rows
            proofs[name] = _proof(read_bytes(path), rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UsageError(f"{folder.name}: {public_line(error)}; restore the folder from version control") from None
    if known:
        return False
    write_digests(folder, proofs)
    return True
