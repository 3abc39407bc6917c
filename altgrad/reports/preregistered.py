"""The page of the preregistered hypotheses: one row each, with what the campaign says of it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.hypotheses import Verdict, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN
from altgrad.pages import (
    Block,
    CodeBlock,
    Column,
    Details,
    Heading,
    Link,
    Md,
    Page,
    PageRef,
    Paragraph,
    Table,
    escape,
    md,
)
from altgrad.reports import columns as col
from altgrad.reports.machines import machine_blocks
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line

PATH = "reports/preregistered"
REPORTS = {
    "formats": ("Format comparison", "reports/format_comparison"),
    "layers": ("Format comparison", "reports/format_comparison"),
    "scaling": ("Format comparison", "reports/format_comparison"),
    "length": ("Format comparison", "reports/format_comparison"),
    "storage": ("Manifold comparison", "reports/manifold_comparison"),
    "controls": ("Manifold comparison", "reports/manifold_comparison"),
    "remedies": ("Failure modes", "reports/failure_modes"),
    "literature": ("Literature", "reports/literature"),
}
"""Study -> the report in which its hypotheses are discussed."""


def preregistered_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; hypotheses without all their runs are pending."""
    found = verdicts(loader)
    rows = tuple(
        (
            Link(verdict.id, PageRef(PATH, verdict.id.lower())),
            verdict.statement,
            md("**{answer}**", answer=verdict.answered),
            escape(verdict.evidence, 4000),
            int(verdict.tests["n_pairs"].min()) if len(verdict.tests) else None,
            _report(verdict),
        )
        for verdict in found
    )
    data = pd.DataFrame(
        [(each.id, each.study, each.statement, each.answered, each.evidence) for each in found],
        columns=["hypothesis", "study", "statement", "answer", "evidence"],
    )
    blocks: list[Block] = [
        Paragraph(Md("*What was written down before the campaign ran, and what its runs say of it.*")),
        data_line(loader),
        *left_out(loader),
        Paragraph(_summary(found)),
        Table(
            ("Hypothesis", "Statement", "Answer", "Evidence", *col.right("Pairs"), "Report"),
            rows,
            md(
                "As in {page}, which also says what counts as an answer. Differences in nats a character with 95% "
                "interval; p-values adjusted by Holm within the family. Pairs: the fewest of a test.",
                page=Link("Preregistration", PageRef("method/preregistration")),
            ),
            data=data,
            id="hypotheses",
        ),
        *_pending(found),
        Heading("The tests"),
        Paragraph(
            "Every test of each family. p-values are two-sided; TOST is the p-value of the difference being within "
            f"{MARGIN:g} nats. A test of an arm with a run that did not finish has none."
        ),
        *(block for verdict in found for block in _tests(verdict)),
    ]
    tests = [row for verdict in found for row in verdict.tests.to_dict("records")]
    blocks += machine_blocks(loader, [(row["contrast"], row["arm"], row["against"]) for row in tests])
    arms = [arm for verdict in found for column in ("arm", "against") for arm in verdict.tests[column] if arm]
    return Page(
        PATH,
        "The preregistered hypotheses",
        (*blocks, *traceability(loader, arms)),
        description="Each hypothesis written down before the campaign ran, with the answer, interval and runs.",
        provenance=provenance(loader, built),
    )


def _summary(found: tuple[Verdict, ...]) -> Md:
    counts = Counter(verdict.answer for verdict in found)
    said = ", ".join(f"{counts[answer]} {answer}" for answer in ("yes", "no", "inconclusive", "pending"))
    less = [verdict.id for verdict in found if verdict.limited]
    limits = md(" Of {which} less was shown than the statement says.", which=words.names(less)) if less else Md("")
    return md("**Of {total} hypotheses: {said}.**{limits}", total=len(found), said=said, limits=limits)


def _report(verdict: Verdict) -> Link:
    title, path = REPORTS[verdict.study]
    return Link(title, PageRef(path))


def _pending(found: tuple[Verdict, ...]) -> list[Block]:
    studies = list(dict.fromkeys(verdict.study for verdict in found if verdict.answer == "pending"))
    if not studies:
        return []
    commands = "\n".join(f"make campaign STUDY={study}" for study in studies)
    text = "These commands record what the pending hypotheses wait for:"
    return [Heading("Pending Experiments"), Paragraph(text), CodeBlock(commands, "bash")]


def _tests(verdict: Verdict) -> list[Block]:
    heading = Heading(f"{verdict.id}: {verdict.answered}", 3, anchor=verdict.id.lower())
    if verdict.tests.empty:
        return [heading, Paragraph(verdict.statement), Paragraph(verdict.evidence)]
    rows = tuple(
        (
            col.arm_link(row["arm"], row["contrast"]) if row["arm"] else row["contrast"],
            words.number(row["difference"], sign=True),
            words.interval(row["low"], row["high"]),
            int(row["n_pairs"]),
            words.number(row["effect_size"], 2, sign=True),
            words.p_text(row["p_value"]),
            words.p_text(row["p_holm"]),
            words.p_text(row["p_equivalent"]),
            int(row["n_ended_badly"]),
        )
        for row in verdict.tests.to_dict("records")
    )
    columns: tuple[Column | str, ...] = (
        "Contrast",
        *col.right("Difference", "95% interval", "Pairs", "Effect size", "p", "Adjusted p", "TOST", "Not finished"),
    )
    table = Table(columns, rows, verdict.statement, data=verdict.tests, id=f"tests-{verdict.id.lower()}")
    return [heading, Paragraph(verdict.evidence), Details(f"The {len(rows)} tests of {verdict.id}", (table,))]
