"""Does this agree with the literature? What others report beside what the recorded runs show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.hypotheses import verdicts
from altgrad.analysis.literature import Finding, findings
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN
from altgrad.pages import (
    Block,
    Bullets,
    ChartBlock,
    Heading,
    Link,
    Md,
    Page,
    PageRef,
    Paragraph,
    Table,
    escape,
    join,
    md,
)
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.machines import machine_blocks
from altgrad.reports.pending import pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line
from altgrad.reports.verdicts import tests_table, verdict_table

PATH = "reports/literature"
VERBS = {
    "agreement": ("agrees", "agree"),
    "no agreement": ("does not agree", "do not agree"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
}


def literature_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; claims whose runs are missing are pending, with what is missing."""
    found, written = loader.memo(findings), verdicts(loader, "H15", "H16")
    tests = pd.concat([each.tests.assign(claim=each.claim.id, answer=each.answer) for each in found], ignore_index=True)
    blocks: list[Block] = [
        Paragraph(Md("*Do these small simulated runs show what others report at scale?*")),
        data_line(loader),
        *left_out(loader),
        Heading("Executive Summary"),
        Paragraph(_answer(found)),
        *_chart(tests),
        Heading("Theirs and ours"),
        _table(found),
        Paragraph(
            "What others report is told in our words and without their figures: their scales, data and measures are "
            "others, so that a number of theirs beside one of ours would compare nothing. Agreement means that our "
            "runs show the same direction, or the same equivalence within our margin; it is no reproduction."
        ),
        Heading("Written down beforehand"),
        verdict_table(written, "verdicts"),
        *tests_table(written, "verdict-tests"),
        *(block for finding in found for block in _section(finding)),
    ]
    if tests.empty:
        blocks += pending("No comparison with the literature is recorded in full.", ["formats", "literature"])
    blocks += [
        Heading("What this cannot show"),
        Bullets(
            (
                "That a reported result holds at its scale, or does not: none of our runs comes near it.",
                "That a difference is absent where ours is inconclusive: more seeds may show it.",
                "Speed, memory or energy, which is what most of these works are about: the formats are simulated.",
            )
        ),
        *machine_blocks(loader, tests[["contrast", "arm", "against"]].itertuples(index=False, name=None)),
        *traceability(loader, {*tests["arm"], *tests["against"]}),
    ]
    return Page(
        PATH,
        "Does this agree with the literature?",
        tuple(blocks),
        description="What others report on training in 8 and 4 bits beside what AltGrad's recorded runs show.",
        provenance=provenance(loader, built),
    )


def _answer(found: Sequence[Finding]) -> Md:
    counts = Counter(finding.answer for finding in found)
    compared = len(found) - counts["related work"] - counts["pending"]
    waiting = counts["pending"]
    if not compared:
        lead = "**Agreement with the literature: pending.**"
        return Md(f"{lead} The runs of {waiting} claims are not recorded in full.")
    numbers = {verb: counts[answer] for answer, verb in VERBS.items() if counts[answer]}  # type: ignore[index]
    parts = words.names([f"{number} {one if number == 1 else many}" for (one, many), number in numbers.items()])
    text = f"**Of {compared} reported results that our runs can be held against, {parts}.**"
    if waiting:
        text += f" {waiting} more are pending: their runs are not recorded in full."
    if against := [escape(finding.claim.question) for finding in found if finding.answer == "no agreement"]:
        text += f" Without agreement: {' '.join(against)}"
    return Md(text)


def _table(found: Sequence[Finding]) -> Table:
    by_id = {finding.claim.id: finding for finding in found}

    def differences(row: col.Row) -> Md | None:
        tests = by_id[row["claim"]].tests.to_dict("records")
        figures = ((row["difference"], words.interval(row["low"], row["high"])) for row in tests)
        return escape("; ".join(f"{words.number(mean, sign=True)} {ends}" for mean, ends in figures)) if tests else None

    def pairs(row: col.Row) -> str:
        return ", ".join(str(n) for n in sorted(set(by_id[row["claim"]].tests["n_pairs"])))

    records = [
        {"claim": each.claim.id, "answer": each.answer, "planned": each.claim.planned, "evidence": each.evidence}
        for each in found
    ]
    columns = (
        col.text("Agreement", "answer"),
        col.of("Question", lambda row: Link(by_id[row["claim"]].claim.question, PageRef(PATH, row["claim"]))),
        col.of("Our difference, nats a character, 95% interval", differences),
        col.of("Pairs", lambda row: pairs(row) or None, right=True),
        col.of("Planned", lambda row: row["planned"] or "no"),
        col.of("Reference", lambda row: _references(by_id[row["claim"]])),
    )
    return col.table(records, columns, "Reported results and ours", "claims")


def _references(finding: Finding) -> Md:
    return join("; ", [Link(name, f"https://arxiv.org/abs/{number}") for name, number in finding.claim.references])


def _section(finding: Finding) -> list[Block]:
    claim = finding.claim
    told = (
        md("They report: {text} ({references})", text=claim.reported, references=_references(finding)),
        f"At which scale: {claim.scale}",
        f"We compare: {claim.ours}",
        md("**Our runs: {answer}.** {evidence}", answer=finding.answer, evidence=finding.evidence),
        f"Why the settings differ: {claim.differs}",
    )
    blocks: list[Block] = [Heading(claim.question, 3, claim.id), Bullets(told)]
    return [*blocks, pending_note(finding.evidence, claim.studies)] if finding.answer == "pending" else blocks


def _chart(tests: pd.DataFrame) -> list[Block]:
    kept = ["claim", "contrast", "arm", "against", "n_pairs", "difference", "low", "high", "answer"]
    data = charts.finite_rows(tests[kept], "difference", "low", "high")
    if data.empty:
        return []
    chart = charts.forest(
        "differences",
        "Our differences where others report one, or none",
        "Paired differences of the final validation loss with 95% t intervals; below zero the first is better; "
        "margin of equivalence is grey.",
        data,
        list(data["contrast"]),
        "difference of final losses, nats a character",
        margin=MARGIN,
    )
    return [ChartBlock(chart)]
