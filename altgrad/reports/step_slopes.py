"""How a step depends on the spacing of the grid: the record of `benchmarks/step_slopes.py`, and its table."""

from __future__ import annotations

from typing import Literal

import pandas as pd
from pydantic import AwareDatetime, Field

from altgrad.analysis import words
from altgrad.formats import get_format
from altgrad.reports import columns as col
from altgrad.reports.measured import Record
from altgrad.site import Table
from altgrad.studies import RULES

NAME = "step-slopes.json"
NAMES = {
    **{rule: choice.label for rule, choice in RULES.items()},
    "gradient-without-eps": "ManifoldAdamW on gradients, eps 1e−20",
}


class Slope(Record):
    """Slopes of log2|dw| over log2 S, one a seed."""

    rule: str  # a key of `NAMES`
    format: str  # whose ulp S is
    first: tuple[float, ...]  # of the first step, where Adam's direction has size one
    later: tuple[float, ...]  # of steps in the last two thirds of the training


class SlopesRecord(Record):
    """benchmarks/recorded/step-slopes.json."""

    benchmark: Literal["step_slopes"] = "step_slopes"
    date: AwareDatetime
    altgrad: str
    code: str
    versions: dict[str, str]
    seeds: tuple[int, ...] = Field(min_length=1)
    steps: int = Field(gt=0)
    slopes: tuple[Slope, ...]


def slope_table(record: SlopesRecord) -> Table:
    """The measured slopes, the mean over the seeds with the smallest and the largest."""
    data = pd.DataFrame(
        [
            {"rule": row.rule, "format": row.format, "seed": seed, "first_step": first, "later_steps": later}
            for row in record.slopes
            for seed, first, later in zip(record.seeds, row.first, row.later, strict=True)
        ]
    )
    columns = (
        col.of("Step rule", lambda row: NAMES.get(row["rule"], row["rule"])),
        col.of("S of", lambda row: get_format(row["format"]).label),
        col.of("First step", lambda row: _range(row["first"]), right=True),
        col.of("Later steps", lambda row: _range(row["later"]), right=True),
    )
    slopes = [slope.model_dump() for slope in record.slopes]
    return col.table(slopes, columns, "Measured slope of log |dw| over log S", "slopes", data)


def _range(values: tuple[float, ...]) -> str:
    mean, low, high = (words.number(each, 2) for each in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean
