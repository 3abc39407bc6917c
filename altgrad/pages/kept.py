"""What a site keeps from one build to the next beside the files that its scripts make.

- Pages of docstrings, for which mkdocstrings needs seconds: as they are after all references between them are resolved.
  They depend on the library's sources, the pages' text, the settings, and the packages that make one of the other.
  They are kept only where all docstrings of a site are this library's, on pages that a script makes.
- The search's entries of each page, by all that they are made of.
- The site's files: mkdocs empties their folder before each build, and writing thousands of them takes seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from altgrad.pages.html import Body
from altgrad.runs.schema import code_fingerprint, digest

_BESIDE = ("assets/_mkdocstrings.css", "objects.inv")
"""What mkdocstrings writes for the pages that it has made itself."""
Entries = dict[str, list[dict[str, Any]]]
"""The search's entries of each page, by a digest of what they are made of."""

_DIRECTIVE = re.compile(r"^::: *(\S+)", re.MULTILINE)
_PACKAGES = ("griffelib", "mkdocs", "mkdocs-autorefs", "mkdocstrings", "mkdocstrings-python", "Markdown")
_ASIDE = ".altgrad-last"
"""Within the site's folder; mkdocs leaves names with a dot alone."""


def documented(texts: Mapping[str, str], made: Container[str]) -> dict[str, str]:
    """The pages of docstrings that can be kept, by place: all that there are, or none.

    Args:
        texts: of all pages, by place.
        made: places of the pages that scripts make.
    """
    named = {name: _DIRECTIVE.findall(text) for name, text in texts.items() if ":::" in text}
    named = {name: modules for name, modules in named.items() if modules}
    ours = all(module.split(".")[0] == "altgrad" for modules in named.values() for module in modules)
    return {name: texts[name] for name in named} if ours and all(name in made for name in named) else {}


def docstrings_key(texts: Mapping[str, str], settings: Path) -> str:
    """A digest of all that the pages of docstrings depend on."""
    packages = [(name, version(name)) for name in _PACKAGES]
    return digest(code_fingerprint(), dict(texts), settings.read_text("utf-8"), packages, sys.version)


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


def remember_search(index: Any, before: Entries, now: Entries) -> None:
    """Let the search's index take the entries of a page that is as it was, instead of parsing it.

    Args:
        index: of material's search plugin; its pages are parsed by ``add_entry_from_context``.
        before: the entries that are known.
        now: takes those of this build.
    """
    parse = index.add_entry_from_context

    def add(page: Any) -> None:
        toc = [(item.id, item.title) for item in _anchors(page.toc)]
        parts = json.dumps([page.url, page.title, page.content, page.meta, toc], default=str, sort_keys=True)
        key = hashlib.sha256(parts.encode()).hexdigest()[:24]
        if key in before:
            index.entries += [dict(entry) for entry in before[key]]
        else:
            known = len(index.entries)
            parse(page)
            before[key] = [dict(entry) for entry in index.entries[known:]]
        now[key] = before[key]

    index.add_entry_from_context = add


def _anchors(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        yield item
        yield from _anchors(item.children)


def read_entries(path: Path) -> Entries:
    """The search's entries that `write_entries` kept; none where the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_entries(path: Path, entries: Entries) -> None:
    """Keep the search's entries of a build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(entries), "utf-8")
    os.replace(temporary, path)


def set_aside(site: Path) -> None:
    """Before mkdocs empties the site's folder: move what is in it out of the way."""
    aside = site / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for entry in site.iterdir():
        if not entry.name.startswith("."):
            entry.rename(aside / entry.name)


def bring_back(site: Path, wanted: Container[str]) -> None:
    """After it: of the files that were set aside those are there again whose places are `wanted`."""
    aside = site / _ASIDE
    for folder, _, names in os.walk(aside, topdown=False):
        for name in names:
            path = Path(folder, name)
            if path.relative_to(aside).as_posix() not in wanted:
                path.unlink()
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)
    if aside.is_dir():
        for entry in aside.iterdir():
            entry.rename(site / entry.name)
        aside.rmdir()


def has(path: Path, data: bytes) -> bool:
    """Whether a file has these bytes; reading it takes a tenth of the time of writing it."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False
