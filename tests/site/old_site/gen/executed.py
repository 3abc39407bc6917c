"""Hand-written pages with code: every Markdown file in docs/ that has executed blocks, run, with their results."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mkdocs.exceptions import PluginError

from altgrad.pages.mkdocs import build_files

DOCS = Path(__file__).resolve().parent.parent / "docs"


def files(page: Path) -> dict[str, bytes]:
    """The executed page. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.pages.guide import GuideError, page_files

    try:
        return page_files(page, DOCS)
    except GuideError as error:
        raise PluginError(str(error)) from error


def key(page: Path) -> str:
    """What the page depends on; while it stays the same it is taken from the cache."""
    from altgrad.pages.guide import page_key

    return page_key(page)


def has_code(page: Path) -> bool:
    """Whether the page has blocks to run; a file that cannot be read is left to mkdocs."""
    return b"python exec" in page.read_bytes() or b"python noexec" in page.read_bytes()


for path in filter(has_code, sorted(DOCS.rglob("*.md"))):
    build_files(partial(files, path), path.relative_to(DOCS).with_suffix("").as_posix(), key=partial(key, path))
