"""The benchmarks: what rounding a tensor costs, and the comparison on every float32 input, from their two records."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.pages import Page
from altgrad.pages.mkdocs import build


def pages() -> Iterable[Page]:
    """The page, from the records. The import is inside so that an error in it shows as a page while serving."""
    from altgrad.analysis.reports.benchmarks import benchmarks_page

    return [benchmarks_page()]


def key() -> str:
    """What the page depends on; while it stays the same it is taken from the cache."""
    from altgrad.analysis.reports import site_key
    from altgrad.analysis.reports.benchmarks import benchmarks_key

    return benchmarks_key(site_key())


build(pages, "benchmarks/index", key=key)
