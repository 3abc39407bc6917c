"""Tables of hypotheses: what was written down beforehand, what the records say of it, and the tests behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from altgrad.analysis.contrasts import Judgement
from altgrad.analysis.hypotheses import Verdict
from altgrad.reports import columns as col
from altgrad.reports.columns import Row
from altgrad.reports.document import macros_of, statements
from altgrad.site import Block, Column, Details, Link, Md, PageRef, Table, escape

PREREGISTERED = "reports/preregistered"


@dataclass(frozen=True)
class Expectation:
    """What was expected of a format or a rule before the runs, with predictions, each under the key of its check.

    Written with earlier pilot figures of this project at hand, so no blind predictions. A check is made from the
    recorded runs: held, did not hold, or not decided.
    """

    written: str
    statement: str
    predictions: dict[str, str]


def expectation(name: str) -> Expectation:
    """The one that docs/sections/expectations.md has under this name."""
    found = getattr(macros_of("expectations"), name)
    return Expectation(found["written"], " ".join(found["statement"].split()), found["predictions"])


def evidence(judgement: Judgement, macro: str = "evidence") -> str:
    """What the runs show, and what a "yes" does not, as docs/sections/evidence.md says it; by another of its macros."""
    return " ".join(getattr(macros_of("evidence"), macro)(judgement).split())


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """What was written down beforehand, and what the records say of it; a decided answer is bold."""
    shown = col.of("What the runs show", lambda row: escape(row["evidence"], 4000))
    return _verdicts(verdicts, "verdicts", (shown,), "Preregistered hypotheses and what the runs say")


def outcome_table(verdicts: Iterable[Verdict], identity: str) -> Table:
    """The same in short: how many tests went which way, and by how much; the evidence is in the table's file."""
    columns = (
        col.text("What happened", "outcome"),
        col.text("Nats (95% CI)", "sizes"),
        col.count("Seeds", "n_pairs"),
    )
    return _verdicts(verdicts, identity, columns)


def _verdicts(verdicts: Iterable[Verdict], identity: str, more: Sequence[Column], caption: str = "") -> Table:
    records = [
        {
            "id": each.id,
            "study": each.study,
            "statement": statements().get(each.id, ""),
            "answer": each.answered,
            **{name: evidence(each.judgement, name) for name in ("outcome", "sizes", "evidence")},
            "n_pairs": each.tests["n_pairs"].min(),
        }
        for each in verdicts
    ]
    columns = (
        col.of("No.", lambda row: Link(row["id"], PageRef(PREREGISTERED, row["id"].lower()))),
        col.of("Hypothesis", _with_gloss),
        col.of("Answer", lambda row: Md(f"**{row['answer']}**" if row["answer"][0] in "yn" else row["answer"])),
    )
    return col.table(records, (*columns, *more), caption, identity)


def _with_gloss(row: Row) -> Md:
    """The registered statement, and what it says in other words where readers asked."""
    gloss = macros_of("evidence").gloss.get(row["id"], "")
    return Md(escape(row["statement"], 4000) + (f" *In other words: {escape(gloss)}*" if gloss else ""))


def tests_table(verdicts: Iterable[Verdict], identity: str) -> list[Block]:
    """Every test behind some verdicts, folded away; nothing while all are pending."""
    frames = [verdict.tests.assign(id=verdict.id) for verdict in verdicts if len(verdict.tests)]
    if not frames:
        return []
    columns = (
        col.text("", "id"),
        col.contrast("Difference"),
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
