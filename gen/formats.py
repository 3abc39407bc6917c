"""The number formats: an index of the catalogue, and a page for each format in use."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.site import Page
from altgrad.site.build import build


def pages() -> Iterable[Page]:
    """The pages, from the catalogue and the recorded runs. The import is inside so that an error shows as a page."""
    from altgrad.reports import site_pages

    return site_pages("formats")


def key() -> str:
    """What the pages depend on; while it stays the same they are taken from the cache."""
    from altgrad.reports import site_key
    from altgrad.reports.document import documents_key

    return site_key("altgrad.reports.formats") + documents_key("formats/index", "formats/_format")


build(pages, "formats/index", key=key)
