"""The three reports, as pages and as plain markdown files."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.reports.failure_modes import failure_modes_page
from altgrad.analysis.reports.format_comparison import format_comparison_page
from altgrad.analysis.reports.manifold_comparison import manifold_comparison_page
from altgrad.analysis.reports.tuning import swept
from altgrad.pages import Page, write_folder


class ReportGenerator:
    """Makes the three reports from the records of `loader`; valid pages come out of any records, also of none.

    Args:
        loader: where the findings come from; default: the recorded studies and the local runs.
        built: time of the build for the provenance; default: SOURCE_DATE_EPOCH, else the newest record's time.
    """

    def __init__(self, loader: ExperimentDataLoader | None = None, built: datetime | None = None) -> None:
        self.loader = loader or ExperimentDataLoader()
        self.built = built

    def pages(self) -> list[Page]:
        """Format comparison, failure modes, manifold comparison."""
        makers = (format_comparison_page, failure_modes_page, manifold_comparison_page)
        return [replace(make(self.loader, self.built), moved=swept(self.loader)) for make in makers]

    def write(self, folder: str | Path, site_root: str = "../site/") -> list[Path]:
        """Write the reports as markdown with their charts (SVG) and data (CSV) into `folder`.

        Links to arms' pages lead below `site_root`: where the built site lies as seen from `folder`, or its address.
        """
        return write_folder(self.pages(), Path(folder), site_root=site_root)
