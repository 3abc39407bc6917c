"""Findings in, `Page` values out: one file per page family. The only part of the analysis that imports pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports.arms import arm_page_makers, arm_pages
from altgrad.reports.benchmarks import benchmarks_key
from altgrad.reports.corrections import corrections_page
from altgrad.reports.document import documents_key
from altgrad.reports.formats import format_pages
from altgrad.reports.generator import REPORTS, ReportGenerator
from altgrad.reports.head import head_page
from altgrad.reports.home import home_page
from altgrad.reports.literature import literature_page
from altgrad.reports.own import own_pages
from altgrad.reports.preregistered import preregistered_page
from altgrad.reports.provenance import code_key
from altgrad.reports.scaling import scaling_page
from altgrad.reports.tuning import moved
from altgrad.runs import sources_fingerprint
from altgrad.runs.schema import digest
from altgrad.site import Page, PageMaker

__all__ = [
    "REPORTS",
    "ReportGenerator",
    "arm_pages",
    "corrections_page",
    "format_pages",
    "head_page",
    "home_page",
    "literature_page",
    "preregistered_page",
    "scaling_page",
    "site_key",
    "site_page_makers",
    "site_pages",
]


def site_pages(family: str) -> list[Page]:
    """The pages of one family for the site: "home", "reports", "runs", "formats" or "own".

    Raises:
        KeyError: for another family.
    """
    loader = ExperimentDataLoader()
    families: dict[str, Callable[[], list[Page]]] = {
        "home": lambda: [home_page(loader)],
        "reports": lambda: [make(loader) for make in REPORTS.values()],
        "runs": lambda: arm_pages(loader),
        "formats": lambda: format_pages(loader),
        "own": lambda: own_pages(loader),
    }
    return [_placed(loader, page) for page in families[family]()]


def site_page_makers(family: str = "runs") -> list[PageMaker]:
    """What makes each page of the family "runs" or "reports": the cache keeps each under its own key."""
    loader = ExperimentDataLoader()
    if family == "runs":
        return arm_page_makers(loader)
    keys = {path: benchmarks_key(site_key(make.__module__) + documents_key(path)) for path, make in REPORTS.items()}
    return [PageMaker(partial(_report, loader, make), keys[path]) for path, make in REPORTS.items()]


def _report(loader: ExperimentDataLoader, make: Callable[[ExperimentDataLoader], Page]) -> Page:
    return _placed(loader, make(loader))


def _placed(loader: ExperimentDataLoader, page: Page) -> Page:
    """The page with its references to arms that have no page of their own leading to where they are."""
    return replace(page, moved=loader.memo(moved))


def site_key(*modules: str) -> str:
    """What the pages of some modules depend on, as one digest: code, records, packages, and the date of the build.

    Without modules: what any page depends on.
    """
    return digest(code_key(*modules, *([moved.__module__] if modules else [])), sources_fingerprint())
