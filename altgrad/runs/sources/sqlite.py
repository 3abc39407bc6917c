"""Reading the SQLite files of other tools, also while they write: nothing is locked, changed or left beside them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from altgrad.config import UsageError
from altgrad.runs.sources.found import first_bytes

MAGIC = b"SQLite format 3\0"


def is_sqlite(path: Path) -> bool:
    """Whether a file is a database of SQLite."""
    return path.suffix in (".db", ".sqlite", ".sqlite3") and first_bytes(path) == MAGIC


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, to a copy where a tool may be writing: what is in its journal belongs to it.

    Raises:
        UsageError: it cannot be read, or is damaged.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        try:
            journal = path.with_name(f"{path.name}-wal")
            if journal.exists() and journal.stat().st_size:
                copy = Path(scratch) / "copy.db"
                shutil.copyfile(path, copy)
                shutil.copyfile(journal, copy.with_name(f"{copy.name}-wal"))
                address = copy.as_uri()
            else:
                address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = stack.enter_context(contextlib.closing(sqlite3.connect(address, uri=True)))
            connection.row_factory = sqlite3.Row
            yield connection
        except (sqlite3.Error, OSError) as error:
            raise UsageError(f"{path.name}: cannot be read ({type(error).__name__}: {error})") from None


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a table; none where there is no such table."""
    return {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}


def rows(connection: sqlite3.Connection, question: str, *given: Any) -> list[sqlite3.Row]:
    """All rows of an answer."""
    return connection.execute(question, given).fetchall()
