"""Does this agree with the literature? What others report beside what the recorded runs show."""

from __future__ import annotations

from collections import Counter
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
    Cell,
    ChartBlock,
    Column,
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
from altgrad.reports.machines import machine_blocks
from altgrad.reports.pending import pending, pending_note
from altgrad.reports.provenance import left_out, provenance, traceability
from altgrad.reports.scope import data_line
from altgrad.reports.verdicts import tests_table, verdict_table

PATH = "reports/literature"


def literature_page(loader: ExperimentDataLoader, built: datetime | None = None) -> Page:
    """The page, from the records of `loader`; claims whose runs are missing are pending, with what is missing."""
    found, written = loader.once(findings), verdicts(loader, "H15", "H16")
    decided = [finding for finding in found if len(finding.tests)]
    blocks: list[Block] = [
        Paragraph(Md("*Do these small simulated runs show what others report at scale?*")),
        data_line(loader),
        *left_out(loader),
        Heading("Executive Summary"),
        Paragraph(_answer(found)),
        *_chart(decided),
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
    ]
    for finding in found:
        blocks += _section(finding)
    if not decided:
        blocks += pending("No comparison with the literature is recorded in full.", ["formats", "literature"])
    arms = [arm for finding in found for column in ("arm", "against") for arm in finding.tests[column]]
    compared = [
        (row["contrast"], row["arm"], row["against"]) for finding in found for row in finding.tests.to_dict("records")
    ]
    return Page(
        PATH,
        "Does this agree with the literature?",
        (*blocks, *_limits(), *machine_blocks(loader, compared), *traceability(loader, arms)),
        description="What others report on training in 8 and 4 bits beside what AltGrad's recorded runs show.",
        provenance=provenance(loader, built),
    )


def _answer(found: tuple[Finding, ...]) -> Md:
    counts = Counter(finding.answer for finding in found)
    compared = len(found) - counts["related work"] - counts["pending"]
    named = {
        "agreement": ("agrees", "agree"),
        "no agreement": ("does not agree", "do not agree"),
        "inconclusive": ("is inconclusive", "are inconclusive"),
    }
    numbers = {text: counts[answer] for answer, text in named.items() if counts[answer]}  # type: ignore[index]
    parts = [f"{number} {one if number == 1 else many}" for (one, many), number in numbers.items()]
    waiting = (
        f" {counts['pending']} more are pending: their runs are not recorded in full." if counts["pending"] else ""
    )
    if not compared:
        text = "**Agreement with the literature: pending.** The runs of {count} claims are not recorded in full."
        return md(text, count=counts["pending"])
    against = [finding.claim.question for finding in found if finding.answer == "no agreement"]
    other = md(" Without agreement: {names}", names=" ".join(against)) if against else Md("")
    return md(
        "**Of {count} reported results that our runs can be held against, {parts}.**{waiting}{other}",
        count=compared,
        parts=words.names(parts),
        waiting=waiting,
        other=other,
    )


def _table(found: tuple[Finding, ...]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    records = []
    for finding in found:
        claim = finding.claim
        tests = finding.tests.to_dict("records")
        said = [
            f"{words.number(row['difference'], sign=True)} {words.interval(row['low'], row['high'])}" for row in tests
        ]
        pairs = sorted({int(row["n_pairs"]) for row in tests})
        rows.append(
            (
                finding.answer,
                Link(claim.question, PageRef(PATH, claim.id)),
                escape("; ".join(said)) if said else None,
                ", ".join(map(str, pairs)) or None,
                claim.planned or "no",
                _references(finding),
            )
        )
        records.append(
            {"claim": claim.id, "answer": finding.answer, "planned": claim.planned, "evidence": finding.evidence}
        )
    columns: tuple[Column | str, ...] = (
        "Agreement",
        "Question",
        Column("Our difference, nats a character, 95% interval"),
        Column("Pairs", "right"),
        "Planned",
        "Reference",
    )
    return Table(columns, tuple(rows), "Reported results and ours", data=pd.DataFrame(records), id="claims")


def _references(finding: Finding) -> Md:
    return join("; ", [Link(name, f"https://arxiv.org/abs/{number}") for name, number in finding.claim.references])


def _section(finding: Finding) -> list[Block]:
    claim = finding.claim
    blocks: list[Block] = [
        Heading(claim.question, 3, claim.id),
        Bullets(
            (
                md("They report: {text} ({references})", text=claim.reported, references=_references(finding)),
                md("At which scale: {text}", text=claim.scale),
                md("We compare: {text}", text=claim.ours),
                md("**Our runs: {answer}.** {evidence}", answer=finding.answer, evidence=finding.evidence),
                md("Why the settings differ: {text}", text=claim.differs),
            )
        ),
    ]
    if finding.answer == "pending":
        blocks.append(pending_note(finding.evidence, claim.studies))
    return blocks


def _chart(decided: list[Finding]) -> list[Block]:
    frames = [finding.tests.assign(claim=finding.claim.id, answer=finding.answer) for finding in decided]
    if not frames:
        return []
    kept = ["claim", "contrast", "arm", "against", "n_pairs", "difference", "low", "high", "answer"]
    data = charts.finite_rows(pd.concat(frames, ignore_index=True)[kept], "difference", "low", "high")
    if data.empty:
        return []
    return [
        ChartBlock(
            charts.forest(
                "differences",
                "Our differences where others report one, or none",
                "Paired differences of the final validation loss with 95% t intervals; below zero the first is better; "
                "margin of equivalence is grey.",
                data,
                list(data["contrast"]),
                "difference of final losses, nats a character",
                margin=MARGIN,
            )
        )
    ]


def _limits() -> list[Block]:
    return [
        Heading("What this cannot show"),
        Bullets(
            (
                "That a reported result holds at its scale, or does not: none of our runs comes near it.",
                "That a difference is absent where ours is inconclusive: more seeds may show it.",
                "Speed, memory or energy, which is what most of these works are about: the formats are simulated.",
            )
        ),
    ]
