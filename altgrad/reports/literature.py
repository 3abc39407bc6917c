"""Does this agree with the literature? docs/reports/literature.md: what others report, and what our runs show."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.hypotheses import verdicts
from altgrad.analysis.literature import findings
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import MARGIN
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.document import Content, content_of, document_page, macros_of
from altgrad.reports.machines import machine_blocks
from altgrad.reports.scope import scope
from altgrad.reports.verdicts import evidence, tests_table, verdict_table
from altgrad.site import MUTED, PALETTE, Block, ChartBlock, Link, Md, Page, PageRef, Table, escape, join
from altgrad.site.document import Part

PATH = "reports/literature"
GROUPS = {
    "Does not agree": ("no agreement",),
    "Not decided": ("inconclusive", "pending"),
    "Agrees": ("agreement",),
    "Related work, without a claim of agreement": ("related work",),
}
AGREES = {"agreement": "yes", "no agreement": "no", "inconclusive": "not decided"}
SHOWN = {
    "no agreement": ("Does not agree", PALETTE[1]),
    "inconclusive": ("Not decided", MUTED),
    "agreement": ("Agrees", PALETTE[0]),
}
"""The groups of the chart, with their titles and colours."""
WIDEST = 0.7
"""Where the chart's axis ends, in nats."""


def literature_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; claims whose runs are missing are pending, with what is missing."""
    return document_page(loader, PATH, *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    found, written = loader.memo(findings), verdicts(loader, "H15", "H16")
    tests = pd.concat([each.tests.assign(claim=each.claim.id, answer=each.answer) for each in found], ignore_index=True)
    counts, headline = Counter(each.answer for each in found), loader.memo(FormatComparator).headline
    told = macros_of("literature").TOLD
    claims = [
        {
            "claim": each.claim.id,
            "answer": each.answer,
            "planned": each.claim.planned,
            "judgement": each.judgement,
            "evidence": evidence(each.judgement),
            "title": told[each.claim.id]["title"],
            "studies": each.claim.studies,
            "references": join(
                "; ",
                [Link(name, f"https://arxiv.org/abs/{number}") for name, number in told[each.claim.id]["references"]],
            ),
            "tests": each.tests.assign(short=each.tests["contrast"].map(words.in_short)).to_dict("records"),
        }
        for each in found
    ]
    values = {
        "claims": {row["claim"]: row for row in claims},
        "counts": counts,
        "groups": {title: [row for row in claims if row["answer"] in of] for title, of in GROUPS.items()},
        "written": [each for each in written if each.answer != "pending"],
        "scope": headline and scope(loader, headline.first),
        "compared": len(found) - counts["related work"] - counts["pending"],
        "contradicted": [row for row in claims if row["answer"] == "no agreement"],
    }
    parts: dict[str, Part] = {
        "differences": lambda: _chart(tests),
        "claims": lambda: [_table(claims)],
        "verdicts": lambda: [verdict_table(written)],
        "tests": lambda: tests_table(written, "verdict-tests"),
        "machines": lambda: machine_blocks(loader, tests[["contrast", "arm", "against"]].itertuples(index=False)),
    }
    return Content(values, parts, lambda: {*tests["arm"], *tests["against"]}).kept()


def _table(claims: list[dict[str, Any]]) -> Table:
    told = macros_of("literature").TOLD

    def differences(row: col.Row) -> Md | None:
        found = (
            f"{test['short']}: {words.number(test['difference'], sign=True)} "
            f"{words.interval(test['low'], test['high'])}, n = {test['n_pairs']}"
            for test in row["tests"]
        )
        return escape("; ".join(found), 4000) or None

    def theirs(row: col.Row) -> Md:
        return Md(f"{escape(told[row['claim']]['they'])} ({row['references']})")

    columns = (
        col.of("Agrees?", lambda row: AGREES.get(row["answer"], row["answer"])),
        col.of("Claim", lambda row: Link(row["title"], PageRef(PATH, row["claim"]))),
        col.of("They report", theirs),
        col.of("In what setting", lambda row: told[row["claim"]]["setting"]),
        col.of("We find, nats per character, 95% interval", differences),
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
    data = data.assign(group=data["answer"].where(data["answer"].isin(SHOWN), "inconclusive"))
    names, axis = [words.in_short(name) for name in data["contrast"]], "difference of final losses, nats per character"
    return [ChartBlock(charts.grouped_narrow_forest("differences", data, names, SHOWN, axis, MARGIN, WIDEST))]
