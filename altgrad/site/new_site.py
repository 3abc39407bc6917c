"""A site of your own: what `altgrad new-site DIR` lays out, from the templates in ``templates/``.

The styles and scripts of the pages are not copied: every build takes them from the library (`assets`), so that they
always fit the pages that it makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import altgrad
from altgrad.config import UsageError
from altgrad.runs.site_names import FILE

_HERE = Path(__file__).parent
TEMPLATES, ASSETS = _HERE / "templates", _HERE / "assets"
_RENAMED = {
    "gitignore": ".gitignore",
    "github/site.yml": ".github/workflows/site.yml",
    "gitlab-ci.yml": ".gitlab-ci.yml",
}
"""Templates whose names begin with a dot, which packages of Python tend to leave out."""
_FROM_WORKFLOW = 'site_url: !ENV [SITE_URL, ""]'


def lay_out(folder: Path) -> list[Path]:
    """Write a small project into a new or empty folder; returns its files.

    Raises:
        UsageError: the folder is a file, is not empty, or cannot be written; one line.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "the folder is not empty" if folder.is_dir() else "there is a file of this name"
            raise UsageError(f"{folder}: {what}; give a new folder")
        written = []
        for name, data in templates():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            written.append(path)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); give another folder") from None
    return written


def set_site_url(folder: Path, address: str) -> None:
    """Write the address of the published site into a new project, in place of the one that its workflow gives."""
    path = folder / "mkdocs.yml"
    path.write_text(path.read_text("utf-8").replace(_FROM_WORKFLOW, f"site_url: {json.dumps(address)}", 1), "utf-8")


def set_names(folder: Path, names: Mapping[str, Any]) -> None:
    """Say in a new project what the names in its runs mean, above the examples of it."""
    path = folder / FILE
    said = yaml.safe_dump(dict(names), sort_keys=False, allow_unicode=True) if names else ""
    path.write_text(said + path.read_text("utf-8"), "utf-8")


def templates() -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of a new project."""
    for path in sorted(TEMPLATES.rglob("*")):
        name = path.relative_to(TEMPLATES).as_posix()
        if path.is_file() and path.suffix != ".pyc":
            yield _RENAMED.get(name, name), path.read_bytes().replace(b"ALTGRAD_VERSION", altgrad.__version__.encode())


def assets() -> Iterator[tuple[str, bytes]]:
    """Name and content of the styles and scripts that the pages need, by their place in a site."""
    for kind in ("javascripts", "stylesheets"):
        for path in sorted((ASSETS / kind).rglob("*")):
            if path.is_file():
                yield path.relative_to(ASSETS).as_posix(), path.read_bytes()
