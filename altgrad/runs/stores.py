"""Folders of records on an object store, read in their place: a path whose files fsspec and Arrow read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from altgrad.config import UsageError, one_line
from altgrad.runs.secrets import mask

_LOCAL: Any = type(Path())  # which a path of another kind can be derived from on every Python


class StoreError(UsageError, OSError):
    """A store that cannot be reached or read, or that was to be written to; for readers a file that cannot be read."""


def located(source: str | Path) -> Path:
    """The folder that a path or an address names: ``s3://bucket/folder``, ``memory://folder``, ``file:///folder``.

    Addresses are those of fsspec. Nothing is asked of the store yet.
    """
    protocol, mark, place = str(source).partition("://")
    if isinstance(source, StorePath) or not mark:
        return Path(source) if isinstance(source, str) else source
    return Path(place) if protocol in ("file", "local") else StorePath(f"{protocol}:/{place}")


def as_now(sources: Iterable[str | Path]) -> tuple[Path, ...]:
    """`located` of each; what a store listed before is asked again."""
    found = tuple(map(located, sources))
    for source in found:
        if isinstance(source, StorePath):
            source.forget()
    return found


class StorePath(_LOCAL):  # type: ignore[misc]
    """A file or folder of a store, for all that reads records; names are those of paths, and nothing can be written.

    Every method raises `StoreError` where the store does not answer; what is not there is said as of a local path.
    """

    def __fspath__(self) -> str:
        raise StoreError(f"{self.address}: a store is only read; copy the folder to change it")

    @property
    def address(self) -> str:
        """As it was given, without secrets."""
        return str(mask(self._whole()))

    def _whole(self) -> str:
        protocol, _, place = str(self).replace("\\", "/").partition(":/")
        return f"{protocol}://{place}"

    def _ask(self, what: str, **how: Any) -> Any:
        try:
            import fsspec

            system, path = fsspec.core.url_to_fs(self._whole())
            return getattr(system, what)(**how) if what == "invalidate_cache" else getattr(system, what)(path, **how)
        except FileNotFoundError:
            raise
        except ImportError as error:
            raise StoreError(
                f"{self.address}: its package is missing ({mask(one_line(error))}); pip install it"
            ) from None
        except Exception as error:  # each store raises what its client does
            raise StoreError(f"{self.address}: cannot be read ({mask(one_line(error))[:200]})") from None

    def forget(self) -> None:
        """Let the store list anew, below the folder too, as of a path alone some do not."""
        self._ask("invalidate_cache")

    def _kind(self) -> str | None:
        try:
            return str(self._ask("info")["type"])
        except FileNotFoundError:
            return None

    def exists(self, **_: Any) -> bool:
        """Whether there is a file or folder."""
        return self._kind() is not None

    def is_dir(self, **_: Any) -> bool:
        """Whether it is a folder."""
        return self._kind() == "directory"

    def is_file(self, **_: Any) -> bool:
        """Whether it is a file."""
        return self._kind() == "file"

    def is_symlink(self) -> bool:
        """A store has none."""
        return False

    def iterdir(self) -> Iterator[StorePath]:
        """What is in the folder."""
        root = self._ask("_strip_protocol").rstrip("/")
        names = {each["name"].rstrip("/") for each in self._ask("ls", detail=True)} - {root}  # some name the folder too
        return (self / name.rpartition("/")[2] for name in sorted(names))

    def glob(self, pattern: str, **_: Any) -> Iterator[StorePath]:
        """What lies as many levels below as `pattern` has parts, each of them matching."""
        first, _mark, rest = pattern.partition("/")
        found = [path for path in (self.iterdir() if self.is_dir() else ()) if path.match(first)]
        return (inner for path in found for inner in ([path] if not rest else path.glob(rest)))

    def rglob(self, pattern: str, **_: Any) -> Iterator[StorePath]:
        """Every file below, as the store has it now."""
        if not self.is_dir():
            return iter(())
        self.forget()
        every = self._ask("find")
        root = self._ask("_strip_protocol").rstrip("/")
        return (path for path in (self / name[len(root) :].lstrip("/") for name in every) if path.match(pattern))

    def resolve(self, strict: bool = False) -> StorePath:
        """The same."""
        return self

    def open(self, *_: Any, **__: Any) -> IO[bytes]:
        """To read bytes of it, those that are asked for alone."""
        return self._ask("open", mode="rb")  # type: ignore[no-any-return]

    def read_bytes(self) -> bytes:
        """All of it."""
        return self._ask("cat_file")  # type: ignore[no-any-return]

    def state(self) -> bytes:
        """What the store says of the file, which changes when it does: size, time, tag."""
        return str(sorted((key, str(value)) for key, value in self._ask("info").items())).encode()
