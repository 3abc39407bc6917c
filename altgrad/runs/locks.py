"""A lock on an open file, held until the file is closed or its process ends, however that ends; Windows has it too."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system says that has no locks, as some network file systems have not."""


def lock(file: IO[bytes] | int) -> None:
    """Take the lock of an open file, or of a folder's descriptor.

    Raises:
        BlockingIOError: somebody else has it.
        OSError: the file system has no locks (`NO_LOCKS`).
    """
    _take(file, shared=False)


def is_locked(path: Path) -> bool:
    """Whether somebody has the lock of the file `path`; False where there is no such file, or no locks."""
    try:
        with open(path, "rb") as file:
            _take(file, shared=True)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def _take(file: IO[bytes] | int, shared: bool) -> None:
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    import msvcrt  # one byte far behind the end, which nobody reads; there are no shared ones

    descriptor = file if isinstance(file, int) else file.fileno()
    try:
        if not isinstance(file, int):
            file.seek(1 << 30)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in _BUSY:
            raise BlockingIOError(error.errno, error.strerror) from None
        raise
