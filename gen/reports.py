"""The three reports, the same that scripts/generate_reports.py writes into reports/, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.site import PageMaker
from altgrad.site.build import build


def pages() -> Iterable[PageMaker]:
    """What makes each. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.reports import site_page_makers

    return site_page_makers("reports")


def key() -> str:
    """What the pages depend on; while it stays the same they are taken from the cache."""
    from altgrad.reports import site_key
    from altgrad.reports.benchmarks import benchmarks_key
    from altgrad.reports.document import PREREGISTRATION, documents_key

    return benchmarks_key(site_key() + documents_key(*PATHS, PREREGISTRATION))


NAMES = (
    "format_comparison",
    "failure_modes",
    "manifold_comparison",
    "head",
    "scaling",
    "preregistered",
    "literature",
    "corrections",
)
PATHS = tuple(f"reports/{name}" for name in NAMES)
build(pages, *PATHS, key=key)
