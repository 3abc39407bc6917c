"""The page of the preregistered hypotheses, docs/reports/preregistered.md: what the campaign says of each."""

from __future__ import annotations

from collections import Counter

from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports import columns as col
from altgrad.reports.document import Content, content_of, document_page, statements
from altgrad.reports.machines import machine_blocks
from altgrad.reports.verdicts import PREREGISTERED, verdict_table
from altgrad.site import Link, Page, PageRef, Table
from altgrad.site.document import Part

REPORTS = {
    **dict.fromkeys(("formats", "layers", "scaling", "length"), ("Format comparison", "reports/format_comparison")),
    **dict.fromkeys(("storage", "controls"), ("Manifold comparison", "reports/manifold_comparison")),
    "remedies": ("Failure modes", "reports/failure_modes"),
    "literature": ("Literature", "reports/literature"),
}
"""Study -> the report in which its hypotheses are discussed."""


def preregistered_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; hypotheses without all their runs are pending."""
    return document_page(loader, PREREGISTERED, *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    found = verdicts(loader)
    tests = [row for verdict in found for row in verdict.tests.to_dict("records")]
    values = {
        "verdicts": found,
        "counts": Counter(verdict.answer for verdict in found),
        "limited": [verdict.id for verdict in found if verdict.limited],
        "waiting": list(dict.fromkeys(verdict.study for verdict in found if verdict.answer == "pending")),
        "tests": _tests,
    }
    compared = [(row["contrast"], row["arm"], row["against"]) for row in tests]
    parts: dict[str, Part] = {
        "hypotheses": lambda: [_table(found)],
        "machines": lambda: machine_blocks(loader, compared),
    }
    arms = {row[end] for row in tests for end in ("arm", "against")}
    return Content(values, parts, lambda: arms).kept()


def _table(found: tuple[Verdict, ...]) -> Table:
    pairs = {verdict.id: verdict.tests["n_pairs"].min() for verdict in found}
    return verdict_table(
        found,
        "hypotheses",
        col.of("Pairs", lambda row: None if col.missing(pairs[row["id"]]) else int(pairs[row["id"]]), right=True),
        col.of("Report", lambda row: Link(REPORTS[row["study"]][0], PageRef(REPORTS[row["study"]][1]))),
    )


def _tests(verdict: Verdict) -> Table:
    columns = (
        col.arm("Contrast", "contrast"),
        col.signed("Difference", "difference"),
        col.interval(),
        col.count("Pairs", "n_pairs"),
        col.signed("Effect size", "effect_size", 2),
        col.p("p", "p_value"),
        col.p("Adjusted p", "p_holm"),
        col.p("TOST", "p_equivalent"),
        col.count("Not finished", "n_ended_badly"),
    )
    return col.table(verdict.tests, columns, statements()[verdict.id], f"tests-{verdict.id.lower()}")
