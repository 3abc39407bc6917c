"""The home page, docs/index.md: the question, the answer so far, one chart, the ways on."""

from __future__ import annotations

from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.pages import Block, ChartBlock, Page
from altgrad.reports.document import document_page
from altgrad.reports.format_comparison import by_layer_type, changes_if, gap_chart, headline_answer
from altgrad.reports.scope import pilot


def home_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`."""
    comparator = loader.memo(FormatComparator)
    comparison = comparator.headline
    answer, scope = headline_answer(loader, comparison) if comparison else ("", "")
    values = {"comparison": comparison, "answer": answer, "scope": scope, "changes": changes_if(loader)}

    def of_headline(part: str) -> list[Block]:
        if comparison is None:
            return []
        if part == "pilot":
            return pilot(loader, [comparison.baseline], int(comparison.table["n_pairs"].max()))
        return [ChartBlock(gap_chart(comparison))]

    parts = {
        "by layer type": lambda: by_layer_type(comparator),
        "pilot": lambda: of_headline("pilot"),
        "gaps": lambda: of_headline("gaps"),
    }
    return document_page(loader, "index", values, parts)
