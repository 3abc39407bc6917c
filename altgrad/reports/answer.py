"""The answer of `altgrad compare` as a page, in the words of the reports."""

from __future__ import annotations

from typing import Any

from altgrad.analysis.comparison import FormatComparator
from altgrad.analysis.contrasts import reading
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.question import BASELINE, Answer, Question
from altgrad.reports import columns as col
from altgrad.reports.charts import forest
from altgrad.reports.document import document_page
from altgrad.site import ChartBlock, Page
from altgrad.text import figure

_COSTS = (
    col.arm("Format", "contrast"),
    col.number("Loss", "val_loss", 4),
    col.signed("Difference", "difference", 4),
    col.interval(digits=4),
    col.count("Pairs", "n_pairs"),
    col.count("Not finished", "n_ended_badly"),
    col.p("Adjusted p", "p_holm"),
    col.p("TOST p", "p_equivalent"),
    col.text("Reading", "reading"),
)
_RATES = (
    col.text("Format", "name"),
    col.general("Learning rate", "rate"),
    col.of("Tried", lambda row: ", ".join(figure(rate, "g") for rate in row["tried"])),
    col.text("Quantized", "scope"),
)


def answer_page(loader: ExperimentDataLoader, asked: Question, found: Answer) -> Page:
    """Which format costs least, with its interval, and what each costs against the unquantized run of the same seed."""
    comparison, rates = found.comparison, found.rates
    losses = dict(zip(comparison.table["format"], comparison.table["val_loss"], strict=True))
    costs = found.costs.assign(
        reading=[reading(row) for row in found.costs.to_dict("records")],
        val_loss=found.costs["contrast"].map(losses),
    ).sort_values("difference", ignore_index=True)
    drawn = costs[costs["low"].notna()]
    own = next(iter(asked.arms.values())).foreign is not None
    values: dict[str, Any] = {
        "comparison": comparison,
        "spot": FormatComparator.sweet_spot(comparison),
        "same_as": {},
        "baseline": BASELINE,
        "costs": costs.to_dict("records"),
        "missing": list(found.missing),
        "tuned": bool(asked.rates),
        "held_out": asked.held_out,
        "edges": rates[rates["edge"]].to_dict("records"),
        "rate": rates["rate"].iloc[0],
        "apart": rates.loc[rates["name"] != BASELINE, "scope"].nunique() > 1,
        "test": costs["test"].iloc[0],
        "margin": asked.margin,
        "own": own,
        **({"unit": "units"} if own else {}),  # else the sentences have theirs
    }
    axis = f"difference to {BASELINE}" + ("" if own else ", nats per character")
    chart = forest("costs", "What each format costs", "", drawn, list(drawn["contrast"]), axis) if len(drawn) else None
    shown = rates.assign(tried=rates["tried"].map(str))
    parts: dict[str, Any] = {
        "costs": [ChartBlock(chart)] if chart else [],
        "table": [col.table(costs, _COSTS, "", "table")],
        "rates": [col.table(rates, _RATES, "Learning rates, and what is quantized", "rates", shown)],
    }
    return document_page(loader, "compare", values, parts, code=__name__, document="own/_compare")
