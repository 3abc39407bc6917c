"""The reports, as pages, as plain markdown files and as figures, with the table of all results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd

from altgrad.analysis.comparison import results_table
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports import tuning
from altgrad.reports.corrections import corrections_page
from altgrad.reports.failure_modes import failure_modes_page
from altgrad.reports.format_comparison import format_comparison_page
from altgrad.reports.head import head_page
from altgrad.reports.literature import literature_page
from altgrad.reports.manifold_comparison import manifold_comparison_page
from altgrad.reports.preregistered import preregistered_page
from altgrad.reports.provenance import provenance
from altgrad.reports.scaling import scaling_page
from altgrad.site import Block, Chart, ChartBlock, Details, Note, Page, chart_figure, write_folder
from altgrad.text import csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANALYSES: Mapping[str, Callable[[ExperimentDataLoader], Page]] = {
    "reports/format_comparison": format_comparison_page,
    "reports/failure_modes": failure_modes_page,
    "reports/manifold_comparison": manifold_comparison_page,
}
REPORTS: Mapping[str, Callable[[ExperimentDataLoader], Page]] = {
    **ANALYSES,
    "reports/head": head_page,
    "reports/scaling": scaling_page,
    "reports/preregistered": preregistered_page,
    "reports/literature": literature_page,
    "reports/corrections": corrections_page,
}
"""What makes the page of each report, by its path."""


class ReportGenerator:
    """Makes the reports from the records of `loader`; valid pages come out of any records, also of none.

    Args:
        loader: where the findings come from; default: the recorded studies and the local runs.
        built: time of the build for the provenance; default: SOURCE_DATE_EPOCH, else none.
    """

    def __init__(self, loader: ExperimentDataLoader | None = None, built: datetime | None = None) -> None:
        self.loader = loader or ExperimentDataLoader()
        self.built = built

    def pages(self) -> list[Page]:
        """Format comparison, failure modes, manifold comparison."""
        return list(self._pages)

    @cached_property
    def _pages(self) -> tuple[Page, ...]:
        moved = self.loader.memo(tuning.moved)

        def placed(make: Callable[[ExperimentDataLoader], Page]) -> Page:
            foot = provenance(self.loader, self.built, code=make.__module__)
            return replace(self.loader.memo(make), moved=moved, provenance=foot)

        return tuple(map(placed, ANALYSES.values()))

    @property
    def charts(self) -> dict[str, Chart]:
        """The charts that matplotlib draws, by ``<report>.<chart>``, such as ``format_comparison.loss-gap``."""
        return {
            f"{page.path.rsplit('/', 1)[-1]}.{chart.id}": chart
            for page in self._pages
            for chart in _charts(page.blocks)
        }

    def figure(self, name: str) -> Figure:
        """One of `charts` as a matplotlib figure, which a notebook shows and which can be changed.

        Raises:
            KeyError: there is no such chart; the message names those that there are.
        """
        charts = self.charts
        if name not in charts:
            raise KeyError(f"no chart {name!r}; there are: {', '.join(charts) or 'none yet'}")
        return chart_figure(charts[name])

    def write(
        self, folder: str | Path, site_root: str = "", documents: Mapping[str, str] = MappingProxyType({})
    ) -> list[Path]:
        """Write the reports as markdown with their charts (SVG) and data (CSV) into `folder`.

        Beside them lies the table of all results: ``results.csv``, ``results.json`` and ``results.txt``. `site_root` is
        the site's address; without it links to pages that are neither reports nor in `documents` are text.
        """
        folder = Path(folder)
        others = (make(self.loader) for path, make in REPORTS.items() if path not in ANALYSES)
        written = write_folder((*self._pages, *others), folder, site_root=site_root, documents=documents)
        return [*written, *_write_results(self.loader, folder)]


def results_text(table: pd.DataFrame) -> str:
    """The table of `results_table` as text for a terminal or a mail: one block a comparison."""
    parts = []
    for (scope, baseline), group in table.groupby(["scope", "baseline"], sort=False):
        setting = f"{scope}; learning rate {group['learning_rate'].iloc[0]:g}, {group['max_steps'].iloc[0]} steps"
        shown = group[
            ["format", "n_finished", "n_runs", "n_pairs", "val_loss", "gap", "low", "high", "p_holm", "verdict"]
        ]
        parts.append(
            f"{setting}\nagainst {baseline}\n\n{shown.to_string(index=False, float_format='%.4f', na_rep='-')}\n"
        )
    return "\n".join(parts) if parts else "No runs can be compared yet.\n"


def _write_results(loader: ExperimentDataLoader, folder: Path) -> list[Path]:
    table = results_table(loader)
    contents = {
        "results.csv": csv(table),
        "results.json": (table.to_json(orient="records", indent=1) + "\n").encode(),
        "results.txt": results_text(table).encode(),
    }
    for name, content in contents.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def _charts(blocks: Iterable[Block]) -> Iterator[Chart]:
    for block in blocks:
        if isinstance(block, ChartBlock) and block.chart.draw is not None:
            yield block.chart
        elif isinstance(block, Details | Note):
            yield from _charts(block.blocks)
