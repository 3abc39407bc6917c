"""The runs: a table of all of them, a page for each arm (one config with all its seeds), and one to compare arms."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.site import PageMaker
from altgrad.site.build import build


def pages() -> Iterable[PageMaker]:
    """What makes them, from the recorded runs. The import is inside so that an error in it shows as a page."""
    from altgrad.reports import site_page_makers

    return site_page_makers("runs")


def key() -> str:
    """What the pages depend on; while it stays the same they are taken from the cache."""
    from altgrad.reports import site_key
    from altgrad.reports.document import documents_key

    return site_key("altgrad.reports.arms") + documents_key("runs/index", "runs/_arm", "runs/_study", "compare/index")


build(pages, "runs/index", "compare/index", key=key, parallel=True)
