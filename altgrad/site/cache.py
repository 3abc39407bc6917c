"""What a site keeps from one build to the next beside the files that its scripts make.

- Pages of docstrings, for which mkdocstrings needs seconds: as they are after all references between them are resolved.
  They depend on the library's sources, the pages' text, the settings, and the packages that make one of the other.
  They are kept where they hold this library's docstrings and nothing else, and no other page has or names any.
- The search's entries of each page, by all that they are made of.
- The site's generated files: mkdocs empties their folder before each build, and writing thousands takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from altgrad.runs.schema import code_fingerprint, digest
from altgrad.site.html import Body

Entries = dict[str, list[dict[str, Any]]]
"""The search's entries of each page, by a digest of what they are made of."""

_BESIDE = ("assets/_mkdocstrings.css", "objects.inv")
"""What mkdocstrings writes for the pages that it has made itself."""
_DIRECTIVE = re.compile(r"^[ \t]*(?:#{1,6} *)?::: ?\S", re.MULTILINE)
_DOCSTRING_PAGE = re.compile(r"# [^\n]+\n(?:\s*\n::: altgrad[\w.]*)+\s*")
_NAMES_DOCSTRINGS = re.compile(r"\]\s?\[altgrad\b|<autoref")
_PACKAGES = (
    "griffelib", "mkdocs", "mkdocs-autorefs", "mkdocs-material", "mkdocstrings", "mkdocstrings-python", "Markdown",
    "pymdown-extensions", "Pygments", "Jinja2", "black", "ruff",
)  # fmt: skip
_ASIDE = ".altgrad-last"
"""Within the site's folder; mkdocs leaves names with a dot alone."""


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
    plain = all(name in made and _DOCSTRING_PAGE.fullmatch(text) for name, text in found.items())
    named = any(_NAMES_DOCSTRINGS.search(text) for name, text in texts.items() if name not in found)
    return found if plain and not named else {}


def docstrings_key(texts: Mapping[str, str], config: Any) -> str:
    """A digest of all that the pages of docstrings depend on; `config` is mkdocs'."""
    plugins = [config["plugins"][name].config for name in ("mkdocstrings", "autorefs") if name in config["plugins"]]
    keys = ("markdown_extensions", "mdx_configs", "use_directory_urls")
    settings = _told([plugins, [config[key] for key in keys], config["theme"].name])
    packages = [(name, _version(name)) for name in _PACKAGES]
    return digest(code_fingerprint(), dict(texts), settings, packages, sys.version)


def docstring_files(pages: Iterable[Any], site: Path) -> dict[str, bytes]:
    """The finished content of mkdocs' pages, and what lies beside them, for `docstring_bodies`."""
    found = {name: (site / name).read_bytes() for name in _BESIDE if (site / name).is_file()}
    for page in pages:
        body = Body(page.content, tuple(_flat(page.toc)), ())
        found[page.file.src_uri] = json.dumps(asdict(body)).encode()
    return found


def docstring_bodies(files: Mapping[str, bytes]) -> dict[str, Body]:
    """The bodies, by place, of what `docstring_files` gave."""
    found = {name: json.loads(data) for name, data in files.items() if name not in _BESIDE}
    return {name: Body(body["html"], tuple(map(tuple, body["toc"])), ()) for name, body in found.items()}


def write_beside(files: Mapping[str, bytes], site: Path) -> None:
    """Of what `docstring_files` gave: write what lies beside the pages."""
    for name in _BESIDE:
        if name in files:
            (site / name).write_bytes(files[name])


def _flat(items: Iterable[Any]) -> Iterable[tuple[int, str, str]]:
    for item in items:
        yield item.level, item.id, item.title
        yield from _flat(item.children)


def search_stamp(index: Any) -> str:
    """A digest of what the entries of all pages depend on; `index` is of material's search plugin."""
    return digest(_version("mkdocs-material"), _told(index.config), find_spec("jieba") is not None)


def remember_search(index: Any, before: Entries, now: Entries) -> None:
    """Let the search's index take the entries of a page that is as it was, instead of parsing it.

    Args:
        index: of material's search plugin; its pages are parsed by ``add_entry_from_context``.
        before: the entries that are known.
        now: takes those of this build.
    """
    parse = index.add_entry_from_context

    def add(page: Any) -> None:
        parts = repr((page.url, str(page.title), page.content, page.meta, [*_flat(page.toc)]))
        key = hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        if key in before:
            index.entries += [dict(entry) for entry in before[key]]
        else:
            known = len(index.entries)
            parse(page)
            before[key] = [dict(entry) for entry in index.entries[known:]]
        now[key] = before[key]

    index.add_entry_from_context = add


def read_entries(path: Path, stamp: str) -> Entries:
    """The search's entries that `write_entries` kept; none where the file is missing, damaged or of another stamp."""
    try:
        kept = json.loads(path.read_bytes())
        whole = digest(stamp, kept["entries"]) == kept["digest"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return kept["entries"] if whole else {}


def write_entries(path: Path, stamp: str, entries: Entries) -> None:
    """Keep the search's entries of a build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"digest": digest(stamp, entries), "entries": entries}), "utf-8")
    os.replace(temporary, path)


def set_aside(site: Path) -> None:
    """Before mkdocs empties the site's folder: move what is in it out of the way."""
    clear(site)
    (site / _ASIDE).mkdir(parents=True)
    for entry in site.iterdir():
        if not entry.name.startswith("."):
            entry.rename(site / _ASIDE / entry.name)


def bring_back(site: Path, wanted: Mapping[str, bytes]) -> set[str]:
    """After it: put back the files that are as `wanted`, by place, and remove all others; gives those that are there.

    Reading a file takes a tenth of the time of writing one. Links are not followed, and none comes back.
    """
    aside, found = site / _ASIDE, set()
    folders: dict[Path, bool] = {aside.parent: True}  # whether it is a folder and no link leads to it

    def plain(folder: Path) -> bool:
        if folder not in folders:
            folders[folder] = plain(folder.parent) and folder.is_dir() and not folder.is_symlink()
        return folders[folder]

    for name, data in wanted.items():
        old, new = aside / name, site / name
        if not plain(old.parent) or old.is_symlink() or not old.is_file() or old.stat().st_nlink > 1:
            continue
        if old.read_bytes() == data:
            new.parent.mkdir(parents=True, exist_ok=True)
            old.rename(new)
            found.add(name)
    clear(site)
    return found


def clear(site: Path) -> None:
    """Remove what was set aside."""
    aside = site / _ASIDE
    if aside.is_symlink() or aside.is_file():
        aside.unlink()
    elif aside.exists():
        shutil.rmtree(aside)


def _told(value: Any) -> Any:
    """Settings as JSON can hold them, the same in every process; functions by name."""
    if isinstance(value, Mapping):
        return [[str(key), _told(each)] for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [_told(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
