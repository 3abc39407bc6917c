"""The plain back end: pages as markdown files in one folder, with their charts and data beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from altgrad.pages.content import Page, PageRef, resolve
from altgrad.pages.render import Dialect, files, render
from altgrad.text import Md


def write_folder(
    pages: Iterable[Page], folder: Path, *, site_root: str, documents: Mapping[str, Md] | None = None
) -> list[Path]:
    """Write each page as ``<folder>/<last part of its path>.md`` with its charts (SVG) and data (CSV) beside it.

    A link to a page of this set leads to its file; a link to any other page leads below `site_root`, the address of
    the built site. Only what changed is written, and charts and data that a page no longer has are removed.

    `documents` are rendered ones (`altgrad.pages.document`) by their path, and belong to the set.

    Returns:
        Every file that belongs to the pages, in order, whether or not it had to be written.
    """
    pages, documents = tuple(pages), documents or {}
    names = {path: path.rsplit("/", 1)[-1] for path in (*(page.path for page in pages), *documents)}

    def address(reference: PageRef, page: Page | None = None) -> str:
        reference = page.place_of(reference) if page else reference
        if reference.is_file:
            return reference.path.rsplit("/", 1)[-1]
        anchor = f"#{reference.anchor}" if reference.anchor else ""
        if reference.path in names:
            return f"{names[reference.path]}.md{anchor}"
        place = reference.path.removesuffix("index").rstrip("/")
        return f"{site_root}{place}/index.html{anchor}" if place else f"{site_root}index.html{anchor}"

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    contents = [{f"{names[path]}.md": resolve(text, address).encode()} for path, text in documents.items()]
    for page in pages:
        name, dialect = names[page.path], Dialect(site=False, address=partial(address, page=page))
        contents.append({f"{name}.md": render(page, dialect).encode(), **files(page, dialect)})
        for stale in [*folder.glob(f"{name}.*.svg"), *folder.glob(f"{name}.*.csv")]:
            if stale.name not in contents[-1]:
                stale.unlink()
    for content in contents:
        for file, data in content.items():
            path = folder / file
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)
            written.append(path)
    return written
