"""How a step depends on the spacing of the grid: the record of `benchmarks/step_slopes.py`, as a part of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import AwareDatetime, Field

from altgrad.analysis import words
from altgrad.formats import get_format
from altgrad.pages import Block, Paragraph
from altgrad.reports import columns as col
from altgrad.reports.measured import RECORDED, Record, found, packages
from altgrad.studies import RULES

NAME = "step-slopes.json"
NAMES = {
    **{rule: choice.label for rule, choice in RULES.items()},
    "gradient-without-eps": "S on the gradient, eps 1e-20 in place of 1e-8",
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


def slope_blocks(folder: Path = RECORDED) -> list[Block]:
    """The measured slopes as a table; pending without a record, a damaged one is named."""
    record, absent = found(folder / NAME, SlopesRecord, "No slopes are recorded.")
    if record is None:
        return absent
    data = pd.DataFrame(
        [
            {"rule": row.rule, "format": row.format, "seed": seed, "first_step": first, "later_steps": later}
            for row in record.slopes
            for seed, first, later in zip(record.seeds, row.first, row.later, strict=True)
        ]
    )
    conditions = (
        "1 says that a step is a number of ulps, 0 that it does not know the grid. Measured on "
        f"{record.date:%Y-%m-%d} with altgrad {record.altgrad}, {packages(record.versions)}: the campaign's model, "
        f"trained for {record.steps} steps without quantization and weight decay on {len(record.seeds)} seeds; the "
        "slope over all weights whose step is not zero, each tensor's means taken out. In brackets, the smallest and "
        "the largest."
    )
    columns = (
        col.of("Step rule", lambda row: NAMES.get(row["rule"], row["rule"])),
        col.of("S of", lambda row: get_format(row["format"]).label),
        col.of("First step", lambda row: _range(row["first"]), right=True),
        col.of("Later steps", lambda row: _range(row["later"]), right=True),
    )
    slopes = [slope.model_dump() for slope in record.slopes]
    table = col.table(slopes, columns, "Measured slope of log |dw| over log S", "slopes", data)
    return [table, Paragraph(conditions)]


def _range(values: tuple[float, ...]) -> str:
    mean, low, high = (words.number(each, 2) for each in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean
