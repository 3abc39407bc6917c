"""The home page: the question, the answer so far with its interval, one chart."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.pages import Page
from altgrad.pages.mkdocs import build


def pages() -> Iterable[Page]:
    """The page, from the recorded runs. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.analysis.reports import site_pages

    return site_pages("home")


build(pages, "index")
