"""Corrections and limits: docs/reports/corrections.md, with its figures computed from the recorded runs."""

from __future__ import annotations

from pathlib import Path

from mkdocs.exceptions import PluginError

from altgrad.pages.mkdocs import build_files

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reports" / "corrections.md"


def files() -> dict[str, bytes]:
    """The page. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.pages.document import DocumentError
    from altgrad.reports import site_corrections

    try:
        return {"reports/corrections.md": site_corrections(DOCUMENT).encode()}
    except DocumentError as error:
        raise PluginError(str(error)) from error


def key() -> str:
    """What the page depends on; while it stays the same it is taken from the cache."""
    from altgrad.reports import site_key

    return site_key() + DOCUMENT.read_text("utf-8")


build_files(files, "reports/corrections", key=key)
