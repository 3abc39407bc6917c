"""The gradient of the logits, docs/reports/head.md: what rounding that one tensor costs, and what follows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from altgrad.analysis.contrasts import runs_of
from altgrad.analysis.hypotheses import RUNAWAY, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.logits import costs_of, everything_quantized, gaps_of, shown_as
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.reports import columns as col
from altgrad.reports.citation import registrations
from altgrad.reports.document import PREREGISTRATION, Content, content_of, document_page, document_source
from altgrad.reports.heat_map import gaps_map
from altgrad.reports.machines import machine_blocks
from altgrad.reports.scope import scope
from altgrad.reports.verdicts import outcome_table, tests_table
from altgrad.site import Block, ChartBlock, Page, Table
from altgrad.site.document import Part
from altgrad.studies import COSTLY, HEAD_FORMATS, ROUNDED, TEXT_FORMATS

PATH = "reports/head"
TESTED = ("H21", "H22", "H23", "H24", "H25", "H26", "H27")
"""The hypotheses of the second registration."""
ORDER = ("no", "inconclusive", "yes", "pending")
"""In which answers are told: what missed first."""
COLUMNS = {"nearest": "to nearest", "stochastic": "stochastic", "diffused": "by diffusion", "wide": "not quantized"}
"""What the columns of the maps are called."""


def head_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; what is not recorded in full is pending."""
    return document_page(loader, PATH, *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    everything = loader.memo(everything_quantized)
    body = gaps_of(loader, "FP32 fresh", {(fmt, "body"): f"{fmt} body" for fmt in HEAD_FORMATS})
    text = gaps_of(
        loader,
        "FP32 sympy",
        {(fmt, how): f"{fmt} head {how} sympy" for fmt in TEXT_FORMATS for how in ("nearest", "stochastic")},
    )
    found = sorted(verdicts(loader, *TESTED), key=lambda verdict: ORDER.index(verdict.answer))
    logits = _logits(loader, everything)
    tests = [row for verdict in found for row in verdict.tests.to_dict("records")]
    compared = [(row["contrast"], row["arm"], row["against"]) for row in tests]
    values = {
        "rows": everything.to_dict("records"),
        "cost": costs_of(everything),
        "body": body.to_dict("records"),
        "text": text.to_dict("records"),
        "logits": logits,
        "limit": FAILURE_GAP,
        "tuned": [shown_as(fmt) for fmt in COSTLY],
        "registered": registrations(document_source(PREREGISTRATION))[1],
        "runaway": RUNAWAY,
        "found": found,
        "pending_studies": list(dict.fromkeys(each.study for each in found if each.answer == "pending")),
        "scope": scope(loader, everything["arm"].iloc[0]) if len(everything) else None,
    }
    parts: dict[str, Part] = {
        "gaps": lambda: _map("gaps", everything),
        "gaps table": lambda: [_table(everything, "gaps-table")],
        "body": lambda: [_table(body, "body")],
        "text": lambda: _map("text", text),
        "text table": lambda: [_table(text, "text-table")],
        "logits": lambda: [_logits_table(logits)],
        "predictions": lambda: [outcome_table(found, "predictions")],
        "tests": lambda: tests_table(found, "tests"),
        "machines": lambda: machine_blocks(loader, compared),
    }
    arms = {*everything["arm"], *body["arm"], *text["arm"]}
    return Content(values, parts, lambda: arms).kept()


def _logits(loader: ExperimentDataLoader, gaps: pd.DataFrame) -> list[dict[str, Any]]:
    """Mean and spread of the logits at the last look, over the runs of an arm."""
    arms = [("FP32", "", "FP32 fresh")] if len(gaps) else []
    arms += [(shown_as(row.format), ROUNDED[row.rounding], row.of) for row in gaps.itertuples()]  # type: ignore[index]
    found = []
    for name, how, arm in arms:
        last = loader.last_look(runs_of(loader, arm)["run_id"]).set_index("statistic")["value"]
        if "logits_mean" in last:
            figures = {"mean": float(last["logits_mean"]), "spread": float(last["logits_spread"])}
            found.append({"format": name, "rounding": how, "arm": runs_of(loader, arm)["arm"].iloc[0], **figures})
    return found


def _map(identity: str, gaps: pd.DataFrame) -> list[Block]:
    if gaps.empty:
        return []
    data = gaps[["format", "rounding", "arm", "n_pairs", "difference", "low", "high"]]
    data = data.assign(format=data["format"].str.removesuffix(" up"), rounding=data["rounding"].map(COLUMNS))
    shown = [name for name in COLUMNS.values() if name in set(data["rounding"])]
    return [ChartBlock(gaps_map(identity, "", data, "difference", "rounding", shown))]


def _table(gaps: pd.DataFrame, identity: str) -> Table:
    columns = (
        col.arm("Arm", "contrast"),
        col.signed("Gap to FP32", "difference"),
        col.interval(),
        col.count("Pairs", "n_pairs"),
        col.count("Not finished", "n_ended_badly"),
    )
    return col.table(gaps, columns, id=identity)


def _logits_table(logits: list[dict[str, Any]]) -> Table:
    columns = (
        col.of("Format", lambda row: col.arm_link(row["arm"], row["format"])),
        col.text("Gradient of the logits", "rounding"),
        col.signed("Mean of the logits", "mean", 2),
        col.number("Spread", "spread", 2),
    )
    return col.table(logits, columns, id="logits")
