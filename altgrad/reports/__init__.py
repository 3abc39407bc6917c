"""Findings in, `Page` values out: one file per page family. The only part of the analysis that imports pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports.arms import arm_page_makers, arm_pages
from altgrad.reports.corrections import corrections_page
from altgrad.reports.formats import format_pages
from altgrad.reports.generator import ReportGenerator
from altgrad.reports.home import home_page
from altgrad.reports.literature import literature_page
from altgrad.reports.preregistered import preregistered_page
from altgrad.reports.provenance import code_key
from altgrad.reports.tuning import swept
from altgrad.runs import sources_fingerprint
from altgrad.runs.schema import digest
from altgrad.site import Page, PageMaker

__all__ = [
    "ReportGenerator",
    "arm_pages",
    "corrections_page",
    "format_pages",
    "home_page",
    "literature_page",
    "preregistered_page",
    "site_key",
    "site_page_makers",
    "site_pages",
]


def site_pages(family: str) -> list[Page]:
    """The pages of one family for the site: "home", "reports", "runs" or "formats".

    Raises:
        KeyError: for another family.
    """
    loader = _loader()
    families: dict[str, Callable[[], list[Page]]] = {
        "home": lambda: [home_page(loader)],
        "reports": lambda: [
            *ReportGenerator(loader).pages(),
            *(make(loader) for make in (preregistered_page, literature_page, corrections_page)),
        ],
        "runs": lambda: arm_pages(loader),
        "formats": lambda: format_pages(loader),
    }
    moved = loader.memo(swept)
    return [replace(page, moved=moved) for page in families[family]()]


def site_page_makers() -> list[PageMaker]:
    """What makes each page of the family "runs", most of a site: processes share them, and the cache keeps each."""
    return arm_page_makers(_loader())


def site_key() -> str:
    """What every page of the site depends on, as one digest: code, records, packages, and the date of the build."""
    return digest(code_key(), sources_fingerprint())


def _loader() -> ExperimentDataLoader:
    """One reading of the records for all families, as long as they do not change."""
    return _reading(sources_fingerprint())


@lru_cache(1)
def _reading(content: str) -> ExperimentDataLoader:
    return ExperimentDataLoader()
