"""The Method page: docs/method.md, with a table of every measure in place of its marker."""

from __future__ import annotations

from pathlib import Path

from altgrad.site.build import build_files

METHOD = Path(__file__).resolve().parent.parent / "docs" / "method.md"


def files() -> dict[str, bytes]:
    """The page. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.reports.measures import measures, method_page

    return method_page(METHOD.read_text("utf-8"), measures(), name="docs/method.md")


build_files(files, "method")
