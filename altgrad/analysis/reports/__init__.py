"""Findings in, `Page` values out: one file per page family. The only part of the analysis that imports pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.reports.arms import arm_pages
from altgrad.analysis.reports.generator import ReportGenerator
from altgrad.analysis.reports.home import home_page
from altgrad.pages import Page

__all__ = ["ReportGenerator", "arm_pages", "home_page", "site_pages"]


def site_pages(family: str) -> list[Page]:
    """The pages of one family for the site: "home", "reports" or "runs".

    Raises:
        KeyError: for another family.
    """
    loader = _loader()
    families: dict[str, Callable[[], list[Page]]] = {
        "home": lambda: [home_page(loader)],
        "reports": lambda: ReportGenerator(loader).pages(),
        "runs": lambda: arm_pages(loader),
    }
    return families[family]()


@cache
def _loader() -> ExperimentDataLoader:
    """One reading of the records for all families of a build; gen/hooks.py forgets the library before the next."""
    return ExperimentDataLoader()
