"""What a site keeps from one build to the next: files, by the key of all that they are made from.

The scripts' pages have keys of their own. Pages of docstrings, for which mkdocstrings needs seconds, are kept as they
are after all references between them are resolved: they depend on the library's sources, the pages' text, the settings,
and the packages that make one of the other. They are kept where they hold this library's docstrings and nothing else,
and no other page has or names any.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from altgrad.imports import face_fingerprint
from altgrad.runs.schema import digest
from altgrad.site.html import Body

log = logging.getLogger("mkdocs.plugins.altgrad")  # below mkdocs' own logger, so that strict builds count warnings

_BESIDE = ("assets/_mkdocstrings.css", "objects.inv")
"""What mkdocstrings writes for the pages that it has made itself."""
_DIRECTIVE = re.compile(r"^[ \t]*(?:#{1,6} *)?::: ?\S", re.MULTILINE)
_SHOWN = re.compile(r"^::: (altgrad\b[\w.]*)", re.MULTILINE)
_DOCSTRING_PAGE = re.compile(r"# [^\n]+\n(?:\s*\n::: altgrad\b[\w.]*)+\s*")
_NAMES_DOCSTRINGS = re.compile(r"\]\s?\[altgrad\b|<autoref")
_PACKAGES = (
    "griffelib", "mkdocs", "mkdocs-autorefs", "mkdocs-material", "mkdocstrings", "mkdocstrings-python", "Markdown",
    "pymdown-extensions", "Pygments", "Jinja2", "black", "ruff",
)  # fmt: skip


class Cache:
    """Files by a name and a key, one archive each; a damaged one counts as missing.

    Args:
        folder: where the archives are.
        refresh: whether nothing in it is read.
        memory: what was read and written before, while serving: it spares reading it again. None: nothing is held.
    """

    def __init__(self, folder: Path, refresh: bool = False, memory: dict[str, dict[str, bytes]] | None = None) -> None:
        self.folder, self.refresh, self.memory = folder, refresh, memory
        self.used: set[str] = set()
        self.writable = True

    def get(self, name: str, key: str) -> dict[str, bytes] | None:
        """The files of this name under this key."""
        place = self._place(name, key)
        if self.refresh and place not in self.used:
            return None
        self.used.add(place)
        found = self.memory.get(place) if self.memory is not None else None
        found = _read(self.folder / place) if found is None else found
        return found if found is None else self._held(place, found)

    def put(self, name: str, key: str, files: Mapping[str, bytes]) -> None:
        """Keep the files; where the folder cannot be written, one line says so and nothing is kept."""
        place = self._place(name, key)
        self.used.add(place)
        self._held(place, dict(files))
        temporary = self.folder / f"{place}.{os.getpid()}.tmp"
        try:
            if self.writable:
                self.folder.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                    for file, data in files.items():
                        archive.writestr(file, data)
                    archive.comment = _digest(files)
                os.replace(temporary, self.folder / place)
        except OSError as error:
            self.writable = False
            log.info(f"The cache is off, since .cache/site cannot be written ({error.strerror})")

    def last(self, name: str) -> dict[str, bytes] | None:
        """The files of this name as they were the last time, whatever has changed since; None without such."""
        for path in sorted(self.folder.glob(f"{name}-{'?' * 16}.zip")):
            if (found := _read(path)) is not None:
                self.used.add(path.name)
                return found
        return None

    def tidy(self) -> None:
        """Remove what this build has not used."""
        for path in self.folder.glob("*.zip") if self.writable else ():
            if path.name not in self.used:
                path.unlink(missing_ok=True)
        if self.memory is not None:
            for place in self.memory.keys() - self.used:
                del self.memory[place]

    def _place(self, name: str, key: str) -> str:
        return f"{name}-{key[:16]}.zip"

    def _held(self, place: str, files: dict[str, bytes]) -> dict[str, bytes]:
        if self.memory is not None:
            self.memory[place] = files
        return files


def _read(path: Path) -> dict[str, bytes] | None:
    """The files of an archive; None without one, and of one that is not as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(each.file_size for each in archive.infolist()) > 2**24 + 100 * path.stat().st_size:
                return None  # no page unpacks to so much
            found = {name: archive.read(name) for name in archive.namelist()}
            return found if archive.comment == _digest(found) else None
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error):  # damage of every kind
        return None


def _digest(files: Mapping[str, bytes]) -> bytes:
    total = hashlib.sha256()
    for name, data in files.items():
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest().encode()


class Warnings(logging.Handler):
    """Counts what mkdocs and its plugins warn of in one build."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self.count += 1


def documented(texts: Mapping[str, str], made: Container[str]) -> dict[str, str]:
    """The pages of docstrings that can be kept, by place: all that there are, or none.

    Args:
        texts: of all pages, by place.
        made: places of the pages that scripts make.
    """
    found = {name: text for name, text in texts.items() if ":::" in text and _DIRECTIVE.search(text)}
    plain = all(name in made and _DOCSTRING_PAGE.fullmatch(_text(text)) for name, text in found.items())
    named = any(_NAMES_DOCSTRINGS.search(text) for name, text in texts.items() if name not in found)
    return found if plain and not named else {}


def _text(page: str) -> str:
    """What stands below the settings at a page's head."""
    return page.split("---\n", 2)[-1].lstrip() if page.startswith("---\n") else page


def docstrings_key(texts: Mapping[str, str], config: Any) -> str:
    """A digest of all that the pages of docstrings depend on; `config` is mkdocs'."""
    plugins = [config["plugins"][name].config for name in ("mkdocstrings", "autorefs") if name in config["plugins"]]
    keys = ("markdown_extensions", "mdx_configs", "use_directory_urls")
    settings = _plain([plugins, [config[key] for key in keys], config["theme"].name])
    packages = [(name, installed(name)) for name in _PACKAGES]
    shown = " ".join(sorted({name for text in texts.values() for name in _SHOWN.findall(text)}))
    return digest(face_fingerprint(shown), dict(texts), settings, packages, sys.version)


def docstring_files(pages: Iterable[Any], site: Path) -> dict[str, bytes]:
    """The finished content of mkdocs' pages, and what lies beside them, for `docstring_bodies`."""
    found = {name: (site / name).read_bytes() for name in _BESIDE if (site / name).is_file()}
    for page in pages:
        found[page.file.src_uri] = json.dumps(asdict(Body(page.content, [*_tokens(page.toc)], ()))).encode()
    return found


def docstring_bodies(files: Mapping[str, bytes]) -> dict[str, Body]:
    """The bodies, by place, of what `docstring_files` gave."""
    return {name: Body(**json.loads(data)) for name, data in files.items() if name not in _BESIDE}


def write_beside(files: Mapping[str, bytes], site: Path) -> None:
    """Of what `docstring_files` gave: write what lies beside the pages."""
    for name in _BESIDE:
        if name in files:
            (site / name).write_bytes(files[name])


def _tokens(items: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for item in items:
        yield {"level": item.level, "id": item.id, "name": item.title, "children": [*_tokens(item.children)]}


def _plain(value: Any) -> Any:
    """Settings as JSON can hold them, the same in every process; functions by name."""
    if isinstance(value, Mapping):
        return [[str(key), _plain(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


@cache
def installed(package: str) -> str:
    """The version of a package; "(not installed)" without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
