"""The home page, docs/index.md: the question, the answer so far, one chart, the ways on."""

from __future__ import annotations

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.scaling import findings
from altgrad.reports.document import Content, content_of, document_page
from altgrad.reports.format_comparison import gap_chart, headline
from altgrad.site import ChartBlock, Page


def home_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`."""
    return document_page(loader, "index", *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    values = headline(loader) | {"ladder_missing": not loader.memo(findings).complete("ladder-held-out")}
    return Content(values, {"gaps": lambda: [ChartBlock(gap_chart(values["comparison"]))]}).kept()
