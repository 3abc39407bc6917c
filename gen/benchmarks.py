"""The benchmarks: what rounding a tensor costs, the comparison on every float32 input, what a training step costs."""

from __future__ import annotations

from collections.abc import Iterable

from altgrad.pages import Page
from altgrad.pages.mkdocs import build


def pages() -> Iterable[Page]:
    """Both pages, from the records. The imports are inside so that an error in them shows as a page while serving."""
    from altgrad.analysis.reports.benchmarks import benchmarks_page
    from altgrad.analysis.reports.training_cost import training_page

    return [benchmarks_page(), training_page()]


def key() -> str:
    """What the page depends on; while it stays the same it is taken from the cache."""
    from altgrad.analysis.reports import site_key
    from altgrad.analysis.reports.benchmarks import benchmarks_key

    return benchmarks_key(site_key())


build(pages, "benchmarks/index", "benchmarks/training", key=key)
