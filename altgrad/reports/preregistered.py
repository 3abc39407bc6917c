"""The page of the preregistered hypotheses: one row each, with what the campaign says of it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from altgrad.analysis import words
from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN
from altgrad.pages import Block, CodeBlock, Details, Heading, Link, Md, Page, PageRef, Paragraph, Table, md
from altgrad.reports import columns as col
from altgrad.reports.machines import machine_blocks
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line
from altgrad.reports.verdicts import PREREGISTERED, verdict_table

REPORTS = {
    **dict.fromkeys(("formats", "layers", "scaling", "length"), ("Format comparison", "reports/format_comparison")),
    **dict.fromkeys(("storage", "controls"), ("Manifold comparison", "reports/manifold_comparison")),
    "remedies": ("Failure modes", "reports/failure_modes"),
    "literature": ("Literature", "reports/literature"),
}
"""Study -> the report in which its hypotheses are discussed."""


def preregistered_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; hypotheses without all their runs are pending."""
    found = verdicts(loader)
    tests = [row for verdict in found for row in verdict.tests.to_dict("records")]
    blocks: list[Block] = [
        Paragraph(Md("*What was written down before the campaign ran, and what its runs say of it.*")),
        data_line(loader),
        *left_out(loader),
        Paragraph(_summary(found)),
        _table(found),
        *_pending(found),
        Heading("The tests"),
        Paragraph(
            "Every test of each family. p-values are two-sided; TOST is the p-value of the difference being within "
            f"{MARGIN:g} nats. A test of an arm with a run that did not finish has none."
        ),
        *(block for verdict in found for block in _tests(verdict)),
        *machine_blocks(loader, [(row["contrast"], row["arm"], row["against"]) for row in tests]),
        *traceability(loader, {row[end] for row in tests for end in ("arm", "against")}),
    ]
    return Page(
        PREREGISTERED,
        "The preregistered hypotheses",
        tuple(blocks),
        description="Each hypothesis written down before the campaign ran, with the answer, interval and runs.",
        provenance=provenance(loader, built),
    )


def _summary(found: tuple[Verdict, ...]) -> Md:
    counts = Counter(verdict.answer for verdict in found)
    said = ", ".join(f"{counts[answer]} {answer}" for answer in ("yes", "no", "inconclusive", "pending"))
    less = words.names([verdict.id for verdict in found if verdict.limited])
    limits = f" Of {less} less was shown than the statement says." if less else ""
    return Md(f"**Of {len(found)} hypotheses: {said}.**{limits}")


def _table(found: tuple[Verdict, ...]) -> Table:
    pairs = {verdict.id: verdict.tests["n_pairs"].min() for verdict in found}
    caption = md(
        "As in {page}, which also says what counts as an answer. Differences in nats a character with 95% "
        "interval; p-values adjusted by Holm within the family. Pairs: the fewest of a test.",
        page=Link("Preregistration", PageRef("method/preregistration")),
    )
    return verdict_table(
        found,
        "hypotheses",
        col.of("Pairs", lambda row: None if col.missing(pairs[row["id"]]) else int(pairs[row["id"]]), right=True),
        col.of("Report", lambda row: Link(REPORTS[row["study"]][0], PageRef(REPORTS[row["study"]][1]))),
        caption=caption,
    )


def _pending(found: tuple[Verdict, ...]) -> list[Block]:
    studies = dict.fromkeys(verdict.study for verdict in found if verdict.answer == "pending")
    if not studies:
        return []
    commands = "\n".join(f"make campaign STUDY={study}" for study in studies)
    text = "These commands record what the pending hypotheses wait for:"
    return [Heading("Pending Experiments"), Paragraph(text), CodeBlock(commands, "bash")]


def _tests(verdict: Verdict) -> list[Block]:
    heading = Heading(f"{verdict.id}: {verdict.answered}", 3, anchor=verdict.id.lower())
    if verdict.tests.empty:
        return [heading, Paragraph(verdict.statement), Paragraph(verdict.evidence)]
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
    table = col.table(verdict.tests, columns, verdict.statement, f"tests-{verdict.id.lower()}")
    return [heading, Paragraph(verdict.evidence), Details(f"The {len(verdict.tests)} tests of {verdict.id}", (table,))]
