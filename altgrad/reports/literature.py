"""Does this agree with the literature? docs/reports/literature.md: what others report, and what our runs show."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.hypotheses import verdicts
from altgrad.analysis.literature import findings
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.document import Content, content_of, document_page
from altgrad.reports.machines import machine_blocks
from altgrad.reports.verdicts import evidence, tests_table, verdict_table
from altgrad.site import Block, ChartBlock, Link, Md, Page, PageRef, Table, escape, join
from altgrad.site.document import Part

PATH = "reports/literature"


def literature_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; claims whose runs are missing are pending, with what is missing."""
    return document_page(loader, PATH, *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    found, written = loader.memo(findings), verdicts(loader, "H15", "H16")
    tests = pd.concat([each.tests.assign(claim=each.claim.id, answer=each.answer) for each in found], ignore_index=True)
    counts = Counter(each.answer for each in found)
    claims = [
        {
            "claim": each.claim.id,
            "answer": each.answer,
            "planned": each.claim.planned,
            "judgement": each.judgement,
            "evidence": evidence(each.judgement),
            "question": each.claim.question,
            "studies": each.claim.studies,
            "references": join(
                "; ", [Link(name, f"https://arxiv.org/abs/{number}") for name, number in each.claim.references]
            ),
            "tests": each.tests,
        }
        for each in found
    ]
    values = {
        "claims": {row["claim"]: row for row in claims},
        "counts": counts,
        "compared": len(found) - counts["related work"] - counts["pending"],
        "contradicted": [row["question"] for row in claims if row["answer"] == "no agreement"],
    }
    parts: dict[str, Part] = {
        "differences": lambda: _chart(tests),
        "claims": lambda: [_table(claims)],
        "verdicts": lambda: [verdict_table(written, "verdicts")],
        "tests": lambda: tests_table(written, "verdict-tests"),
        "machines": lambda: machine_blocks(loader, tests[["contrast", "arm", "against"]].itertuples(index=False)),
    }
    return Content(values, parts, lambda: {*tests["arm"], *tests["against"]}).kept()


def _table(claims: list[dict[str, Any]]) -> Table:
    def differences(row: col.Row) -> Md | None:
        figures = row["tests"][["difference", "low", "high"]].itertuples(index=False)
        told = (f"{words.number(mean, sign=True)} {words.interval(low, high)}" for mean, low, high in figures)
        return escape("; ".join(told)) or None

    columns = (
        col.text("Agreement", "answer"),
        col.of("Question", lambda row: Link(row["question"], PageRef(PATH, row["claim"]))),
        col.of("Our difference, nats a character, 95% interval", differences),
        col.of("Pairs", lambda row: ", ".join(map(str, sorted(set(row["tests"]["n_pairs"])))) or None, right=True),
        col.of("Planned", lambda row: row["planned"] or "no"),
        col.of("Reference", lambda row: row["references"]),
    )
    data = pd.DataFrame(claims)[["claim", "answer", "planned", "evidence"]]
    return col.table(claims, columns, "Reported results and ours", "claims", data)


def _chart(tests: pd.DataFrame) -> list[Block]:
    kept = ["claim", "contrast", "arm", "against", "n_pairs", "difference", "low", "high", "answer"]
    data = charts.finite_rows(tests[kept], "difference", "low", "high")
    if data.empty:
        return []
    chart = charts.forest(
        "differences",
        "Our differences where others report one, or none",
        "",
        data,
        list(data["contrast"]),
        "difference of final losses, nats a character",
        margin=MARGIN,
    )
    return [ChartBlock(chart)]
