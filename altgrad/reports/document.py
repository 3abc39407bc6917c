"""The pages that a person writes: docs/**/*.md with the values, figures and tables that are computed for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.contrasts import Row, missing, named_family
from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, MARGIN
from altgrad.reports import columns as col
from altgrad.reports.pending import larger, pending, pending_note
from altgrad.reports.provenance import left_out, provenance, runs_behind, traceability
from altgrad.reports.scope import data_line, recorded_line
from altgrad.runs.schema import digest
from altgrad.site import Download, Md, Page, Provenance, code, slug
from altgrad.site.document import NotRecorded, Part, render_document
from altgrad.text import csv

DOCUMENTS = Path(__file__).parent / "documents"
FILTERS: dict[str, Callable[..., str]] = {
    "number": words.number,
    "signed": lambda value, digits=3: words.number(value, digits, sign=True),
    "percent": words.percent,
    "share": lambda value, digits=0: f"{value:.{digits}%}",
    "general": lambda value, form="g": format(value, form),
    "thousands": lambda value: f"{value:,}",
    "p": words.p_text,
    "p_equals": words.p_equals,
    "interval": words.interval,
    "span": words.span,
    "estimate": words.estimate,
    "nats": words.contrast,
    "names": lambda items: words.names(list(items)),
    "tokens": words.tokens,
    "quantized": words.quantized,
    "code": code,
    "anchor": lambda text: Md(slug(text)),
}
"""How a document writes a value: `altgrad.analysis.words`, but for whole numbers."""


def document_page(
    loader: ExperimentDataLoader,
    path: str,
    values: Mapping[str, Any] | None = None,
    parts: Mapping[str, Part] | None = None,
    arms: Callable[[], Iterable[str]] | None = None,
    built: datetime | None = None,
    document: str = "",
    of: str = "",
    text: str | None = None,
) -> Page:
    """The page of docs/`path`.md, from the records of `loader`.

    Args:
        loader: the records.
        path: of the page, and of its document.
        values: what its sentences name beside `MARGIN` as ``margin``, links to arms and boxes of what is pending.
        parts: figures, tables and sections, by the name that ``show`` calls them by.
        arms: those whose runs are behind the page: a file beside it lists them, to which "traceability" leads.
        built: time of the build for the provenance.
        document: in place of `path`, where many pages have one document.
        of: whose runs the records are, for the provenance, where they are not all.
        text: the document itself, where it is none of the library's.

    Raises:
        altgrad.site.document.DocumentError: the document names what there is not, or is malformed.
    """

    @cache
    def behind() -> pd.DataFrame:
        return runs_behind(loader, arms() if arms else ())

    shared: dict[str, Part] = {
        "recorded": lambda: [recorded_line(loader)],
        "data": lambda: [data_line(loader, scoped=False)],
        "scoped data": lambda: [data_line(loader)],
        "left out": lambda: left_out(loader),
        "traceability": lambda: traceability(behind(), path),
    }
    functions: dict[str, Any] = {
        "margin": MARGIN,
        "arm": col.arm_link,
        "contrast": lambda of, to: _contrast(loader, of, to),
        "verdict": lambda identity: _verdict(loader, identity),
        "alpha": ALPHA,
        "pending": lambda missing, *studies: pending_note(missing, studies),
        "pending_section": lambda missing, *studies: pending(missing, studies),
        "larger": lambda study: larger(loader, study),
    }
    page = page_of(path, provenance(loader, built, of), {**functions, **(values or {})}, parts, shared, document, text)
    traced = arms is not None and len(behind())
    return replace(page, downloads=(Download("runs.csv", csv(behind()), listed=False),)) if traced else page


def page_of(
    path: str,
    foot: Provenance,
    values: Mapping[str, Any],
    parts: Mapping[str, Part] | None = None,
    shared: Mapping[str, Part] | None = None,
    document: str = "",
    text: str | None = None,
) -> Page:
    """The page of docs/`path`.md from these values and parts alone, and what its foot says."""
    name = document or path
    source = document_source(name) if text is None else text
    found = render_document(source, f"docs/{name}.md", values, parts, shared, FILTERS, DOCUMENTS)
    return Page(path, found.title, found.blocks, found.description, provenance=foot)


def _contrast(loader: ExperimentDataLoader, *pair: str) -> Row:
    """The paired difference of two of the campaign's arms, of its studies and seeds only, as a row of a family of one.

    Raises:
        NotRecorded: not all of their runs have ended.
    """
    if lacking := missing(loader, pair):
        raise NotRecorded(lacking)
    row: Row = named_family(loader, [pair]).to_dict("records")[0]
    return row


def _verdict(loader: ExperimentDataLoader, identity: str) -> Verdict:
    (found,) = verdicts(loader, identity)
    if found.answer == "pending":
        raise NotRecorded(found.evidence)
    return found


def document_source(path: str) -> str:
    """The text of the document of a page."""
    return (DOCUMENTS / f"{path}.md").read_text("utf-8")


def documents_key(*paths: str) -> str:
    """A digest of the documents of some pages and of those that they may import, for the cache."""
    shared = sorted(f"sections/{file.stem}" for file in (DOCUMENTS / "sections").glob("*.md"))
    return digest(*map(document_source, (*paths, *shared)))
