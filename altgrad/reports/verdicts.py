"""Tables of hypotheses: what was written down beforehand, what the records say of it, and the tests behind it."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.hypotheses import Expectation, Verdict
from altgrad.pages import Block, Column, Details, Md, Table, escape, md
from altgrad.reports.columns import arm_link, right


def hypothesis(value: Expectation) -> Md:
    """A hypothesis with its date and what was known when it was written."""
    return md(
        "Hypothesis, written on {date}, before the runs that ship with the repository, but with earlier pilot "
        "figures of "
        "this project at hand, so an expectation rather than a blind prediction: {text}",
        date=value.written,
        text=value.statement,
    )


def verdict_table(verdicts: Iterable[Verdict], identity: str) -> Table:
    """What was written down beforehand, and what the records say of it."""
    records = [(verdict.id, verdict.statement, verdict.answered, verdict.evidence) for verdict in verdicts]
    data = pd.DataFrame(records, columns=["id", "hypothesis", "answer", "evidence"])
    rows = tuple((name, escape(text), answer, escape(evidence, 4000)) for name, text, answer, evidence in records)
    columns: tuple[Column | str, ...] = ("", "Hypothesis, written beforehand", "Answer", "Evidence")
    return Table(columns, rows, "Preregistered hypotheses and what the runs say", data=data, id=identity)


def tests_table(verdicts: Iterable[Verdict], identity: str) -> list[Block]:
    """Every test behind some verdicts, folded away; nothing while all are pending."""
    frames = [verdict.tests.assign(id=verdict.id) for verdict in verdicts if len(verdict.tests)]
    if not frames:
        return []
    data = pd.concat(frames, ignore_index=True)
    rows = tuple(
        (
            row["id"],
            arm_link(row["arm"], row["contrast"]),
            arm_link(row["against"], "against"),
            int(row["n_pairs"]),
            words.number(row["difference"], 4, sign=True),
            words.interval(row["low"], row["high"], 4),
            words.number(row["effect_size"], 2, sign=True),
            words.p_text(row["p_holm"]),
            words.p_text(row["p_equivalent"]),
        )
        for row in data.to_dict("records")
    )
    columns: tuple[Column | str, ...] = (
        "",
        "Difference",
        "Other arm",
        *right("Pairs", "Nats", "95% interval", "Effect size", "Adjusted p", "TOST p"),
    )
    table = Table(columns, rows, "Tests of the families that the preregistration names", data=data, id=identity)
    return [Details("The tests", (table,))]
