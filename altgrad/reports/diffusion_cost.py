"""What a rounding of the logits' gradient adds to a step: the record of `benchmarks/diffusion.py`, and its table."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from altgrad.analysis import words
from altgrad.formats import get_format
from altgrad.reports import columns as col
from altgrad.reports.measured import RESULT, Record, table
from altgrad.site import Block

NAME = "diffusion.json"
LIMIT = 0.15
"""What diffusion may add to a step."""
NAMES = {
    "nearest_even": "to nearest",
    "stochastic": "stochastically",
    "diffused": "by error diffusion",
    "wide": "not at all",
}


class Cost(Record):
    """The step of one arm."""

    format: str
    classes: int = Field(gt=0)
    rounding: str  # a key of `NAMES`
    step_ms: float = Field(gt=0)
    added: float  # as a part of the step that rounds to nearest

    @property
    def met(self) -> bool | None:
        """Whether it is within the limit; None where there is none."""
        return self.added <= LIMIT if self.rounding == "diffused" else None


class DiffusionRecord(Record):
    """benchmarks/recorded/diffusion.json."""

    benchmark: Literal["diffusion"] = "diffusion"
    date: AwareDatetime
    altgrad: str
    versions: dict[str, str]
    costs: tuple[Cost, ...] = Field(min_length=1)


def within(record: DiffusionRecord | None) -> dict[int, bool]:
    """Whether diffusion is within the limit in every format, by the number of classes."""
    diffused = [cost for cost in record.costs if cost.met is not None] if record else []
    return {cost.classes: all(each.met for each in diffused if each.classes == cost.classes) for cost in diffused}


def cost_table(record: DiffusionRecord | None) -> list[Block]:
    """The costs, a row an arm; nothing without a record."""
    columns = (
        col.of("Logits' gradient rounded", lambda row: NAMES.get(row["rounding"], row["rounding"])),
        col.of("Format", lambda row: get_format(row["format"]).label),
        col.of("Classes", lambda row: f"{row['classes']:,}", right=True),
        col.of("Step, ms", lambda row: words.number(row["step_ms"], 1), right=True),
        col.of("Added", lambda row: words.number(100 * row["added"], 1, sign=True) + "%", right=True),
        col.of("At most 15%", lambda row: RESULT[row["met"]]),
    )
    return table(record.costs, columns, "A step with each rounding", "diffusion") if record else []
