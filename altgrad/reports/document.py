"""The pages that a person writes: docs/**/*.md with the values, figures and tables that are computed for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.contrasts import Row, describe, missing, named_family, runs_of
from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import ALPHA, MARGIN
from altgrad.formats import get_format
from altgrad.reports import columns as col
from altgrad.reports.citation import CITATION, citation_values
from altgrad.reports.provenance import LINKED, left_out, linked_table, provenance, runs_behind
from altgrad.reports.scope import data_line, recorded_line
from altgrad.runs.schema import digest
from altgrad.site import Block, Download, Heading, Link, Md, Page, Provenance, Text, code, slug
from altgrad.site.document import Document, NotRecorded, Part, macros, render_document
from altgrad.studies import ARMS, LARGE, STUDIES, identity_of
from altgrad.text import csv, minus

DOCUMENTS = Path(__file__).parent / "documents"
PREREGISTRATION = "method/preregistration"
FILTERS: dict[str, Callable[..., str]] = {
    "number": words.number,
    "signed": lambda value, digits=3: words.number(value, digits, sign=True),
    "percent": words.percent,
    "share": lambda value, digits=0: words.figure(value, f".{digits}%"),
    "general": words.figure,
    "minus": minus,
    "thousands": lambda value: words.figure(value, ","),
    "p": words.p_text,
    "p_equals": words.p_equals,
    "interval": words.interval,
    "span": words.span,
    "estimate": words.estimate,
    "nats": words.contrast,
    "describe": describe,
    "names": lambda items: words.names(list(items)),
    "quantized": words.quantized,
    "code": code,
    "anchor": lambda text: Md(slug(text)),
}
"""How a document writes a value: `altgrad.analysis.words`, but for whole numbers."""


class Content(NamedTuple):
    """What a document names of some records: values, parts, and the arms behind the page."""

    values: Mapping[str, Any]
    parts: Mapping[str, Part]
    arms: Callable[[], Iterable[str]] | None = None
    code: str = ""  # the module that has found it

    def kept(self) -> Content:
        """The same, with each part made once: an edited sentence makes none again."""
        return self._replace(parts={name: cache(part) if callable(part) else part for name, part in self.parts.items()})


def content_of(loader: ExperimentDataLoader, find: Callable[[ExperimentDataLoader], Content]) -> Content:
    """What `find` finds in the records: found once, as long as what several documents share does not change."""
    held, known = loader.memo(_held), (find, documents_key())
    if find.__module__ not in held or held[find.__module__][0] != known:
        held[find.__module__] = known, find(loader)._replace(code=find.__module__)
    return held[find.__module__][1]


def _held(loader: ExperimentDataLoader) -> dict[str, tuple[object, Content]]:
    """What `content_of` has found, by module, and what for."""
    return {}


def document_page(
    loader: ExperimentDataLoader,
    path: str,
    values: Mapping[str, Any] | None = None,
    parts: Mapping[str, Part] | None = None,
    arms: Callable[[], Iterable[str]] | None = None,
    code: str = "",
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
        code: the module that makes the page, for the provenance.
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
        "traceability": lambda: _traceability(behind(), path),
        "cite": lambda: _section("cite", citation_values(document_source(PREREGISTRATION))).blocks,
    }
    functions: dict[str, Any] = {
        **campaign(loader),
        "arm": partial(_arm_link, loader),
        "format": get_format,
        "statement": lambda identity: statements()[identity],
        "pending": pending,
        "pending_section": lambda missing, *studies: section("pending", {"missing": missing, "studies": studies}),
        "larger": lambda study: _larger(loader, study),
    }
    page = page_of(
        path, provenance(loader, built, of, code), {**functions, **(values or {})}, parts, shared, document, text
    )
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


def _arm_link(loader: ExperimentDataLoader, arm: str, shown: str = "", run_id: str = "") -> Link:
    """A link to an arm's page, or to one of its runs on it; without words of its own, what the arm is called."""
    return col.arm_link(arm, shown or loader.memo(site_labels)[arm], run_id)


def campaign(loader: ExperimentDataLoader) -> dict[str, Any]:
    """What a condition of `holds` reads: the campaign's arms and hypotheses, and the levels they are held against."""
    return loader.memo(_campaign)


def _campaign(loader: ExperimentDataLoader) -> dict[str, Any]:
    found: dict[str, Callable[..., Any]] = {
        "contrast": _contrast,
        "verdict": _verdict,
        "stalls": _stalls,
        "rate": _rate,
        "swept": _swept,
    }
    return {"margin": MARGIN, "alpha": ALPHA} | {name: cache(partial(find, loader)) for name, find in found.items()}


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
        raise NotRecorded(found.judgement.more["missing"])
    return found


def _stalls(loader: ExperimentDataLoader, arm: str) -> float:
    """The mean stall ratio of one of the campaign's arms, of its studies and seeds only.

    Raises:
        NotRecorded: not all of its runs have ended.
    """
    if lacking := missing(loader, [arm]):
        raise NotRecorded(lacking)
    return float(runs_of(loader, arm)["stall_ratio"].mean())


def _rate(loader: ExperimentDataLoader, arm: str) -> float:
    """The learning rate of one of the campaign's arms, of its studies and seeds only.

    Raises:
        NotRecorded: not all of its runs have ended.
    """
    if lacking := missing(loader, [arm]):
        raise NotRecorded(lacking)
    return float(runs_of(loader, arm)["learning_rate"].iloc[0])


def _swept(loader: ExperimentDataLoader, arm: str) -> dict[float, float]:
    """The mean final loss of one of the campaign's arms over the held-out seeds of its sweep, by learning rate.

    Raises:
        NotRecorded: no run of its sweep is recorded.
    """
    identity = identity_of(ARMS[arm].config(), rate=False)
    studies = [name for name, study in STUDIES.items() if study.sweeps and arm in study.seeds]
    runs = loader.runs[loader.runs["study"].isin(studies)]
    own = [each for each in runs["arm"].unique() if identity_of(loader.config(each), rate=False) == identity]
    if not own:
        raise NotRecorded(f"No sweep of {ARMS[arm].label} is recorded.")
    means = runs[runs["arm"].isin(own)].groupby("learning_rate")["final_val_loss"].mean()
    return {float(rate): float(mean) for rate, mean in means.items()}


def section(
    name: str, values: Mapping[str, Any], parts: Mapping[str, Part] | None = None
) -> tuple[Heading, *tuple[Block, ...]]:
    """docs/sections/`name`.md under its heading, with these values and parts."""
    found = _section(name, values, parts)
    return (Heading(found.title), *found.blocks)


def _section(name: str, values: Mapping[str, Any], parts: Mapping[str, Part] | None = None) -> Document:
    path = f"sections/{name}"
    return render_document(document_source(path), f"docs/{path}.md", values, parts, {}, FILTERS, DOCUMENTS)


def pending(missing: Text, *studies: str) -> tuple[Block, ...]:
    """What stands where runs are missing, on a page that has others: what, and the commands that record it."""
    return _section("pending_note", {"missing": missing, "studies": studies}).blocks


def _larger(loader: ExperimentDataLoader, study: str) -> tuple[Block, ...]:
    """A note while a study of the campaign is recorded and its larger version, for a GPU, is not."""
    recorded = set(loader.runs["study"])
    if study not in recorded or f"{study}-large" in recorded:
        return ()
    values = {"study": study, "large": LARGE, "pending": pending}
    return _section("larger", values).blocks


def _traceability(runs: pd.DataFrame, path: str) -> tuple[Block, ...]:
    """Where the runs behind the report `path` are: the file of all, links to W&B, or how to sync those without."""
    linked = int(runs["wandb_url"].notna().sum())
    values = {"runs": len(runs), "linked": linked, "shown": LINKED, "path": path}
    return section("traceability", values, {"linked": lambda: linked_table(runs)})


def macros_of(name: str) -> Any:
    """What docs/sections/`name`.md sets, and its macros, for cells and charts: they give plain text."""
    return _macros(f"sections/{name}.md", document_source(f"sections/{name}"))


@cache
def _macros(file: str, text: str) -> Any:
    return macros(file, DOCUMENTS, FILTERS)


def statements() -> dict[str, str]:
    """Each hypothesis in the words of the preregistration, by its number."""
    rows = re.findall(r"^\| (H\d+) \| [\w-]+ \| (.*?) \|", document_source(PREREGISTRATION), re.MULTILINE)
    return dict(rows)


def document_source(path: str) -> str:
    """The text of the document of a page."""
    return (DOCUMENTS / f"{path}.md").read_text("utf-8")


def documents_key(*paths: str) -> str:
    """A digest of the documents of some pages and of what they may take from others, for the cache."""
    shared = sorted(f"sections/{file.stem}" for file in (DOCUMENTS / "sections").glob("*.md"))
    registered = sorted(f"method/{file.stem}" for file in (DOCUMENTS / "method").glob("preregistration*.md"))
    return digest(CITATION.read_text("utf-8"), *map(document_source, (*paths, *registered, *shared)))
