"""The home page, docs/index.md: the question, the answer so far, one chart, the ways on."""

from __future__ import annotations

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports.document import document_page
from altgrad.reports.format_comparison import gap_chart, headline
from altgrad.reports.scope import pilot
from altgrad.site import Block, ChartBlock, Page


def home_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`."""
    values = headline(loader)
    comparison = values["comparison"]

    def gaps() -> list[Block]:
        return [ChartBlock(gap_chart(comparison))]

    parts = {"pilot": lambda: pilot(loader, [comparison.baseline], comparison.most_pairs), "gaps": gaps}
    return document_page(loader, "index", values, parts)
