"""Does this agree with the literature? docs/reports/literature.md: what others report, and what our runs show."""

from __future__ import annotations

import textwrap
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
from altgrad.reports.document import Content, content_of, document_page, macros_of
from altgrad.reports.machines import machine_blocks
from altgrad.reports.verdicts import evidence, tests_table, verdict_table
from altgrad.site import MUTED, PALETTE, Block, ChartBlock, Link, Md, Page, PageRef, Table, escape, join
from altgrad.site.document import Part

PATH = "reports/literature"
GROUPS = {
    "Where ours differs": ("no agreement",),
    "Not decided": ("inconclusive", "pending"),
    "Where ours agrees": ("agreement",),
    "Related work, without a claim of agreement": ("related work",),
}
SAME = {"agreement": "yes", "no agreement": "no"}
COLOURS = {"agreement": PALETTE[0], "no agreement": PALETTE[1]}
WIDEST, LINE = 0.7, 44
"""Where the chart's axis ends, in nats, and how long a line of its labels is."""


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
        "groups": {title: [row for row in claims if row["answer"] in of] for title, of in GROUPS.items()},
        "written": [each for each in written if each.answer != "pending"],
        "compared": len(found) - counts["related work"] - counts["pending"],
        "contradicted": [row for row in claims if row["answer"] == "no agreement"],
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
    told = macros_of("literature").TOLD

    def differences(row: col.Row) -> Md | None:
        figures = row["tests"][["contrast", "difference", "low", "high", "n_pairs"]].itertuples(index=False)
        found = (
            f"{name}: {words.number(mean, sign=True)} {words.interval(low, high)}, n = {pairs}"
            for name, mean, low, high, pairs in figures
        )
        return escape("; ".join(found), 4000) or None

    def theirs(row: col.Row) -> Md:
        return Md(f"{escape(told[row['claim']]['they'])} ({row['references']})")

    columns = (
        col.of("Same direction?", lambda row: SAME.get(row["answer"], row["answer"])),
        col.of("Question", lambda row: Link(row["question"], PageRef(PATH, row["claim"]))),
        col.of("They report", theirs),
        col.of("In what setting", lambda row: told[row["claim"]]["setting"]),
        col.of("We find, nats a character, 95% interval", differences),
        col.of("In what setting", lambda row: told[row["claim"]]["ours"]),
        col.of("Planned", lambda row: row["planned"] or "no"),
    )
    data = pd.DataFrame(claims)[["claim", "answer", "planned", "evidence"]]
    return col.table(claims, columns, "Reported results and ours", "claims", data)


def _chart(tests: pd.DataFrame) -> list[Block]:
    kept = ["claim", "contrast", "arm", "against", "n_pairs", "difference", "low", "high", "answer"]
    data = charts.finite_rows(tests.loc[tests["answer"] != "related work", kept], "difference", "low", "high")
    if data.empty:
        return []
    order = {answer: place for place, answer in enumerate(answer for of in GROUPS.values() for answer in of)}
    data = data.sort_values("answer", key=lambda answers: answers.map(order), kind="stable", ignore_index=True)
    names = [
        name if len(name) <= LINE else "\n− ".join(textwrap.fill(arm, LINE) for arm in name.split(" − "))
        for name in data["contrast"]
    ]
    axis, colours = (
        "difference of final losses, nats a character",
        [COLOURS.get(each, MUTED) for each in data["answer"]],
    )
    legend = {PALETTE[1]: "not the same direction", PALETTE[0]: "the same", MUTED: "not decided"}
    chart = charts.forest("differences", "", "", data, names, axis, colours, MARGIN, WIDEST, legend)
    return [ChartBlock(chart)]
