"""The page "Corrections and limits", docs/reports/corrections.md: what was said, and what is so."""

from __future__ import annotations

from typing import Any

from altgrad.analysis.corrections import REPEATED, corrections
from altgrad.analysis.hypotheses import LONG_ARMS
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.reports.document import Content, content_of, document_page
from altgrad.site import Md, Page, md
from altgrad.site.document import NotRecorded
from altgrad.studies import ARMS, FP32_RATE


def corrections_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`."""
    return document_page(loader, "reports/corrections", *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    found = corrections(loader)
    values = {
        "unrecorded": unrecorded,
        "limit": FAILURE_GAP,
        "fp32_rate": FP32_RATE,
        "repeated": REPEATED,
        "h5": lambda: _known(found["h5"], "Not recorded in full: the runs of H5."),
        "e7m0_worst": found["e7m0_worst"] and found["e7m0_worst"] | {"difference": found["e7m0_worst"]["gap"]},
        "fp32": lambda: _known(found["fp32"], "Not recorded in full: FP32."),
        "rate": lambda arm: ARMS[arm].rate,
        "long_formats": len(LONG_ARMS),
        "long_steps": ARMS["E0M7 long"].config().max_steps,
    }
    return Content(found | values, {})


def unrecorded(study: str) -> Md:
    """What stands where the runs of a study are missing."""
    return md("*Not recorded here: the runs of study {study}.*", study=study)


def _known(value: Any, what: str) -> Any:
    if value is None:
        raise NotRecorded(what)
    return value
