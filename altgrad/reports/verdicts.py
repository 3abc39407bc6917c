"""Tables of hypotheses: what was written down beforehand, what the records say of it, and the tests behind it."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from altgrad.analysis.hypotheses import Verdict
from altgrad.reports import columns as col
from altgrad.site import Block, Column, Details, Link, Md, PageRef, Table, Text, escape

PREREGISTERED = "reports/preregistered"


def verdict_table(
    verdicts: Iterable[Verdict],
    identity: str,
    *more: Column,
    caption: Text = "Preregistered hypotheses and what the runs say",
) -> Table:
    """What was written down beforehand, and what the records say of it; a decided answer is bold."""
    fields = ("id", "study", "statement", "answered", "evidence")
    records = [{name.removesuffix("ed"): getattr(each, name) for name in fields} for each in verdicts]
    columns = (
        col.of("No.", lambda row: Link(row["id"], PageRef(PREREGISTERED, row["id"].lower()))),
        col.of("Hypothesis", lambda row: escape(row["statement"], 4000)),
        col.of("Answer", lambda row: Md(f"**{row['answer']}**" if row["answer"][0] in "yn" else row["answer"])),
        col.of("What the runs show", lambda row: escape(row["evidence"], 4000)),
    )
    return col.table(records, (*columns, *more), caption, identity)


def tests_table(verdicts: Iterable[Verdict], identity: str) -> list[Block]:
    """Every test behind some verdicts, folded away; nothing while all are pending."""
    frames = [verdict.tests.assign(id=verdict.id) for verdict in verdicts if len(verdict.tests)]
    if not frames:
        return []
    columns = (
        col.text("", "id"),
        col.arm("Difference", "contrast"),
        col.of("Other arm", lambda row: col.arm_link(row["against"], "against")),
        col.count("Pairs", "n_pairs"),
        col.signed("Nats", "difference", 4),
        col.interval(digits=4),
        col.signed("Effect size", "effect_size", 2),
        col.p("Adjusted p", "p_holm"),
        col.p("TOST p", "p_equivalent"),
    )
    caption = "Tests of the families that the preregistration names"
    return [Details("The tests", (col.table(pd.concat(frames, ignore_index=True), columns, caption, identity),))]
