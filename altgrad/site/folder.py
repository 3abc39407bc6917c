"""The plain back end: pages as markdown files in one folder, with their charts and data beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from altgrad.site.content import Page, PageRef
from altgrad.site.render import Dialect, files, render


def write_folder(
    pages: Iterable[Page], folder: Path, *, site_root: str = "", documents: Mapping[str, str] = MappingProxyType({})
) -> list[Path]:
    """Write each page as ``<folder>/<last part of its path>.md`` with its charts (SVG) and data (CSV) beside it.

    Only what changed is written, and charts and data that a page no longer has are removed.

    Args:
        pages: a link to one of them leads to its file.
        folder: where they go.
        site_root: the address of the built site, below which other links lead.
        documents: where they lead in place of it where there is no such address, by the page's path; to pages that are
            not among them a link is text.

    Returns:
        Every file that belongs to the pages, in order, whether or not it had to be written.
    """
    pages = tuple(pages)
    names = {page.path: page.path.rsplit("/", 1)[-1] for page in pages}

    def address(page: Page, reference: PageRef) -> str:
        reference = page.place_of(reference)
        if reference.is_file:
            return reference.path.rsplit("/", 1)[-1]
        anchor = f"#{reference.anchor}" if reference.anchor else ""
        if reference.path in names:
            return f"{names[reference.path]}.md{anchor}"
        if site_root:
            place = f"{reference.path.removesuffix('index').rstrip('/')}/".lstrip("/")
            return f"{site_root}{place}index.html{anchor}"
        return f"{documents[reference.path]}{anchor}" if reference.path in documents else ""

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    contents = []
    for page in pages:
        name, dialect = names[page.path], Dialect(partial(address, page))
        contents.append({f"{name}.md": render(page, dialect).encode(), **files(page, site=False)})
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
