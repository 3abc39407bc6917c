"""Files of a record: replaced whole, never in part; read only where they are files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from altgrad.runs.stores import StorePath


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never a part: temporary file, fsync, replace."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """`write_text` of bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that replaces it where the block ends well, and is removed where it does not."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device would be waited for, or never end.

    Raises:
        OSError: there is none, or it is none.
    """
    if isinstance(path, StorePath):
        return path.read_bytes()
    with open(path, "rb", buffering=0, opener=_opened) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path.name} is no regular file")
        return file.read()


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe is opened whether or not somebody writes to it
