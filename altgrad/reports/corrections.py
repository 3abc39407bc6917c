"""The page "Corrections and limits", docs/reports/corrections.md: what was said, and what is so."""

from __future__ import annotations

from altgrad.analysis.corrections import corrections
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.pages import Md, Page, md
from altgrad.reports.document import document_page


def corrections_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`."""
    return document_page(loader, "reports/corrections", {**corrections(loader), "unrecorded": unrecorded})


def unrecorded(study: str) -> Md:
    """What stands where the runs of a study are missing."""
    return md("*Not recorded here: the runs of study {study}.*", study=study)
