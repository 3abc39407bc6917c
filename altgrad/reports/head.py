"""The gradient of the logits, docs/reports/head.md: what rounding that one tensor costs, and what follows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from altgrad.analysis.contrasts import runs_of
from altgrad.analysis.hypotheses import RUNAWAY, verdicts
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.logits import (
    CHARACTERS,
    costs_by_vocabulary,
    costs_of,
    everything_quantized,
    gaps_of,
    looks_at_logits,
    on_another_text,
    probe_against_gaps,
    rates_with_vocabulary,
    shown_as,
    without_embedding_and_head,
)
from altgrad.analysis.statistics import FAILURE_GAP
from altgrad.formats import get_format
from altgrad.reports import charts, measured
from altgrad.reports import columns as col
from altgrad.reports.citation import registrations
from altgrad.reports.document import PREREGISTRATION, Content, content_of, document_page, document_source
from altgrad.reports.heat_map import gaps_map
from altgrad.reports.machines import machine_blocks
from altgrad.reports.scope import scope
from altgrad.reports.verdicts import outcome_table, tests_table
from altgrad.site import Block, ChartBlock, Page, Table
from altgrad.site.document import Part
from altgrad.studies import BODY_OPERAND_ARMS, COSTLY, HEAD_CONTROL_ARMS, OWN_ROUNDED, ROUNDED

PATH = "reports/head"
TESTED = ("H21", "H22", "H23", "H24", "H25", "H26", "H27", "H28", "H29", "H30", "H36", "H37")
"""The hypotheses of the second and third registration that are about this tensor."""
ORDER = ("no", "inconclusive", "yes", "pending")
"""In which answers are told: what missed first."""
COLUMNS = {
    "nearest": "to nearest",
    "mean-removed": "mean removed",
    "residual-on-target": "on the target",
    "stochastic": "stochastic",
    "diffused": "by diffusion",
    "wide": "not quantized",
}
"""What the columns of the maps are called."""


PROBES = {"probe-tensor.json": {}, "probe-blocks.json": {"E3M2": "MXFP6"}}
"""Records of `altgrad probe`, and what studies call a format with the scales of one."""
PREDICTED_RANKS = {"class_bias": 0.6, "row_mass": 0.3}
"""Rank correlations that were registered: of the first at least, of the second less."""
UNFINISHED = ("n_ended_badly", "extra_ended_badly", "wide_ended_badly")
"""Columns of `costs_by_vocabulary`: runs that did not finish to nearest, stochastically, and with it not quantized."""
CURVES = ("E7M0", "NVFP4")
"""Formats whose logits are drawn."""


class ProbedCell(measured.Record):
    """What the probe found of one format and rounding."""

    format: str
    rounding: str
    class_bias: float
    class_noise: float
    row_mass: float


class ProbeRecord(measured.Record):
    """What `altgrad probe --save` writes."""

    data: str
    config: dict[str, Any]
    seed: int
    steps: int
    batches: int
    cells: tuple[ProbedCell, ...]


def head_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; what is not recorded in full is pending."""
    return document_page(loader, PATH, *content_of(loader, _content))


def _content(loader: ExperimentDataLoader) -> Content:
    everything = loader.memo(everything_quantized)
    body, text = loader.memo(without_embedding_and_head), loader.memo(on_another_text)
    controls = gaps_of(loader, "FP32 fresh", _controls())
    operands = gaps_of(loader, "FP32 fresh", {_operand_of(arm.name): arm.name for arm in BODY_OPERAND_ARMS})
    vocabulary = costs_by_vocabulary(loader)
    probed, ranks = probe_against_gaps(loader, _probed())
    looks = _looks(loader)
    found = sorted(verdicts(loader, *TESTED), key=lambda verdict: ORDER.index(verdict.answer))
    logits = _logits(loader, everything)
    tests = [row for verdict in found for row in verdict.tests.to_dict("records")]
    compared = [(row["contrast"], row["arm"], row["against"]) for row in tests]
    values = {
        "rows": everything.to_dict("records"),
        "cost": costs_of(loader, everything),
        "body": body.to_dict("records"),
        "text": _by_rounding(text),
        "logits": logits,
        "controls": controls.to_dict("records") if controls["rounding"].isin(OWN_ROUNDED).any() else [],
        "operands": operands.assign(format=operands["format"].map(shown_as)).to_dict("records"),
        "vocabulary": vocabulary.to_dict("records"),
        "rates": rates_with_vocabulary(loader),
        "probed": probed.to_dict("records"),
        "ranks": ranks,
        "predicted_ranks": PREDICTED_RANKS,
        "characters": CHARACTERS,
        "looks": looks.to_dict("records"),
        "limit": FAILURE_GAP,
        "tuned": [shown_as(fmt) for fmt in COSTLY],
        "registered": registrations(document_source(PREREGISTRATION))[1:],
        "runaway": RUNAWAY,
        "found": found,
        "scope": scope(loader, everything["arm"].iloc[0]) if len(everything) else None,
    }
    parts: dict[str, Part] = {
        "gaps": lambda: _map("gaps", everything),
        "gaps table": lambda: [col.differences("Gap to FP32", everything, "gaps-table")],
        "body": lambda: [col.differences("Gap to FP32", body, "body")],
        "text": lambda: _map("text", text),
        "text table": lambda: [col.differences("Gap to FP32", text, "text-table")],
        "logits": lambda: [_logits_table(logits)],
        "looks": lambda: _looks_chart(looks),
        "controls": lambda: _map("controls", controls),
        "controls table": lambda: [col.differences("Gap to FP32", controls, "controls-table")],
        "operands": lambda: [col.differences("Gap to FP32", operands, "operands")],
        "vocabulary": lambda: [_vocabulary_table(vocabulary)],
        "probed": lambda: [_probed_table(probed)],
        "predictions": lambda: [outcome_table(found, "predictions")],
        "tests": lambda: tests_table(found, "tests"),
        "machines": lambda: machine_blocks(loader, compared),
    }
    arms = {*everything["arm"], *body["arm"], *text["arm"], *controls["arm"], *operands["arm"]}
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


def _by_rounding(gaps: pd.DataFrame) -> list[dict[str, Any]]:
    """The gap of each format by rounding, of those that have both."""
    table = gaps.pivot(index="format", columns="rounding", values="difference")
    return list(table.reindex(columns=["nearest", "stochastic"]).dropna().reset_index().to_dict("records"))


def _operand_of(arm: str) -> tuple[str, str]:
    """Format and operand of an arm with one operand alone."""
    fmt, _, operand = arm.partition(" body ")
    return fmt, operand


def _controls() -> dict[tuple[str, str], str]:
    """The arms that tell why a rounding helps, beside those it is held against."""
    formats = dict.fromkeys(arm.name.partition(" head ")[0] for arm in HEAD_CONTROL_ARMS)
    return {
        (fmt, how): f"{fmt} head {how}" for fmt in formats for how in ("nearest", *OWN_ROUNDED, "stochastic", "wide")
    }


def _probed() -> list[dict[str, Any]]:
    """The cells of the recorded probes, by the names of formats and roundings in studies."""
    cells = []
    for name, named in PROBES.items():
        record, _ = measured.found(measured.RECORDED / name, ProbeRecord)
        for cell in record.cells if record else ():
            fmt, how = get_format(cell.format).label, cell.rounding.removesuffix("_even")
            cells.append(cell.model_dump() | {"format": named.get(fmt, fmt), "rounding": how})
    return cells


def _looks(loader: ExperimentDataLoader) -> pd.DataFrame:
    arms = {"FP32 fresh": "FP32"}
    arms |= {f"{fmt} head {how}": f"{fmt} {how}" for fmt in CURVES for how in ("nearest", "stochastic")}
    return looks_at_logits(loader, arms)


def _looks_chart(looks: pd.DataFrame) -> list[Block]:
    names = {name: name.split(" ")[0] for name in dict.fromkeys(looks["series"])}
    columns, axes = ("step", "logits_mean", "series"), ("step", "mean of the logits")
    return [
        ChartBlock(charts.lines("looks", "", "", looks, looks, columns, axes, formats=names, markers=True, right=1.35))
    ]


def _map(identity: str, gaps: pd.DataFrame) -> list[Block]:
    if gaps.empty:
        return []
    data = gaps[["format", "rounding", "arm", "n_pairs", "difference", "low", "high"]]
    data = data.assign(format=data["format"].str.removesuffix(" up"), rounding=data["rounding"].map(COLUMNS))
    shown = [name for name in COLUMNS.values() if name in set(data["rounding"])]
    return [ChartBlock(gaps_map(identity, "", data, "difference", "rounding", shown))]


def _vocabulary_table(costs: pd.DataFrame) -> Table:
    columns = (
        col.text("Format", "format"),
        col.count("Tokens", "tokens"),
        col.signed("To nearest", "difference"),
        col.interval(),
        col.signed("Per token", "per_token"),
        col.signed("Stochastic", "extra"),
        col.interval(low="extra_low", high="extra_high"),
        col.count("Pairs", "n_pairs"),
        col.of("Not finished", lambda row: " / ".join(str(row[name]) for name in UNFINISHED), right=True),
    )
    return col.table(costs, columns, id="vocabulary")


def _probed_table(cells: pd.DataFrame) -> Table:
    columns = (
        col.text("Format", "format"),
        col.of("Gradient of the logits", lambda row: ROUNDED[row["rounding"]]),
        col.number("class_bias", "class_bias", 2),
        col.number("row_mass", "row_mass", 4),
        col.signed("Cost above not quantized", "difference", 4),
        col.interval(),
    )
    return col.table(cells, columns, id="probed")


def _logits_table(logits: list[dict[str, Any]]) -> Table:
    columns = (
        col.of("Format", lambda row: col.arm_link(row["arm"], row["format"])),
        col.text("Gradient of the logits", "rounding"),
        col.signed("Mean of the logits", "mean", 2),
        col.number("Spread", "spread", 2),
    )
    return col.table(logits, columns, id="logits")
