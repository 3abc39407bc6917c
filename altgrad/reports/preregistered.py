"""The page of the preregistered hypotheses, docs/reports/preregistered.md: what the campaign says of each."""

from __future__ import annotations

from collections import Counter

from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports import columns as col
from altgrad.reports.document import Content, content_of, document_page, statements
from altgrad.reports.machines import machine_blocks
from altgrad.reports.verdicts import PREREGISTERED, outcome_table
from altgrad.site import Page, Table
from altgrad.site.document import Part

REPORTS = {
    **dict.fromkeys(
        ("formats", "layers", "scaling", "length", "granularity"),
        ("Format comparison", "reports/format_comparison"),
    ),
    **dict.fromkeys(("storage", "controls", "rivals", "decay"), ("Manifold comparison", "reports/manifold_comparison")),
    "remedies": ("Failure modes", "reports/failure_modes"),
    "literature": ("Literature", "reports/literature"),
    **dict.fromkeys(
        ("head", "blocks-only", "text", "head-controls", "body-operands", "vocabulary"),
        ("The gradient of the logits", "reports/head"),
    ),
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
        "by_report": _by_report(found),
        "counts": Counter(verdict.answer for verdict in found),
        "limited": [verdict.id for verdict in found if verdict.limited],
        "waiting": list(dict.fromkeys(verdict.study for verdict in found if verdict.answer == "pending")),
        "tests": _tests,
    }
    compared = [(row["contrast"], row["arm"], row["against"]) for row in tests]
    plain = [verdict for verdict in found if verdict.answer == "yes" and not verdict.limited]
    others = [verdict for verdict in found if verdict not in plain]
    parts: dict[str, Part] = {
        "hypotheses": lambda: [outcome_table(others, "hypotheses")] if others else [],
        "as predicted": lambda: [outcome_table(plain, "as-predicted")],
        "machines": lambda: machine_blocks(loader, compared),
    }
    arms = {row[end] for row in tests for end in ("arm", "against")}
    return Content(values, parts, lambda: arms).kept()


def _by_report(found: tuple[Verdict, ...]) -> list[tuple[str, str, list[Verdict]]]:
    """Title and path of each report, and the verdicts that are discussed there."""
    return [
        (*report, [each for each in found if REPORTS[each.study] == report])
        for report in dict.fromkeys(REPORTS[each.study] for each in found)
    ]


def _tests(verdict: Verdict) -> Table:
    columns = (
        col.contrast("Contrast"),
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
