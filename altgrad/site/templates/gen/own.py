"""Overview, Effects, Curves and Health: what was varied in the recorded runs, what it did, and how they went."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.site import Page
from altgrad.site.build import build


def pages() -> Iterable[Page]:
    """The pages, from the recorded runs. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.reports import site_pages

    return site_pages("own")


def key() -> str:
    """What the pages depend on; while it stays the same they are taken from the cache."""
    from altgrad.reports import site_key
    from altgrad.reports.document import documents_key

    documents = ("own/_overview", "own/_effects", "own/_curves", "own/_health")
    return site_key("altgrad.reports.own") + documents_key(*documents)


build(pages, "overview", "effects", "curves", key=key, optional=("health",))
