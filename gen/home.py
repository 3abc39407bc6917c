"""The home page: the question, the answer so far with its interval, one chart."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.site import Page
from altgrad.site.build import build


def pages() -> Iterable[Page]:
    """The page, from the recorded runs. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.reports import site_pages

    return site_pages("home")


def key() -> str:
    """What the pages depend on; while it stays the same they are taken from the cache."""
    from altgrad.reports import site_key
    from altgrad.reports.document import documents_key

    return site_key("altgrad.reports.home") + documents_key("index")


build(pages, "index", key=key)
