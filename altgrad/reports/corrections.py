"""The page "Corrections and limits": a document that a person writes, with figures computed from the records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import altgrad
from altgrad.analysis import words
from altgrad.analysis.corrections import corrections
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.pages import Md, md
from altgrad.pages.document import render_document

PATH = "reports/corrections"
DOCUMENT = Path(altgrad.__file__).parents[1] / "docs" / "reports" / "corrections.md"
"""The document in a checkout; an installed package has none."""


def corrections_document(loader: ExperimentDataLoader, document: Path = DOCUMENT) -> Md:
    """The rendered document, from the records of `loader`.

    Raises:
        altgrad.pages.document.DocumentError: it names a value that there is not, or is malformed.
    """
    filters: dict[str, Callable[..., str]] = {
        "estimate": words.estimate,
        "number": words.number,
        "percent": words.percent,
        "p": words.p_text,
        "unrecorded": unrecorded,
    }
    return render_document(document.read_text("utf-8"), corrections(loader), f"docs/reports/{document.name}", filters)


def unrecorded(study: str) -> Md:
    """What stands where the runs of a study are missing."""
    return md("*Not recorded here: the runs of study {study}.*", study=study)
