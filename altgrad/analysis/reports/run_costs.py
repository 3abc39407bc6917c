"""What recording costs: the record of `benchmarks/runs.py` and the page that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import AwareDatetime, Field

import altgrad
from altgrad.analysis.reports import common
from altgrad.analysis.reports.benchmarks import RECORDED, Record, read_record
from altgrad.pages import Block, Bullets, CodeBlock, Column, Note, Page, Paragraph, Provenance, Table, md
from altgrad.runs.schema import RecordError

COMMAND = "make bench-runs"


class Figure(Record):
    """One figure, against a goal and a floor of the same run where there are such.

    Attributes:
        name: what was measured.
        value: in `unit`; smaller is better.
        goal: the largest value that was aimed at.
        floor: what the least that must be done took in the same run, in `unit`; floor_name: what that is.
        goal_ratio: the largest ratio of value to floor that was aimed at.
        reason: of a missed goal, or what to know beside the figure.
    """

    name: str
    value: float = Field(ge=0)
    unit: str
    goal: float | None = Field(default=None, gt=0)
    floor: float | None = Field(default=None, gt=0)
    floor_name: str = ""
    goal_ratio: float | None = Field(default=None, gt=0)
    reason: str = ""

    @property
    def met(self) -> bool | None:
        """Whether every goal is met; None without one."""
        if self.goal is None and self.goal_ratio is None:
            return None
        ratio = self.value / self.floor if self.floor else 0.0
        return (self.goal is None or self.value <= self.goal) and (self.goal_ratio is None or ratio <= self.goal_ratio)


class RunsRecord(Record):
    """benchmarks/recorded/runs.json."""

    benchmark: Literal["runs"] = "runs"
    date: AwareDatetime
    altgrad: str
    code: str
    cores: int = Field(gt=0)
    load: float | None = None
    versions: dict[str, str]
    sizes: dict[str, int]
    figures: tuple[Figure, ...]


def runs_costs_page(folder: Path = RECORDED) -> Page:
    """The page, from the record in `folder`; pending where there is none, and a damaged record is named."""
    blocks: list[Block] = [
        Paragraph(
            "What writing a run's record costs a training loop, how long reading many takes, and what W&B's failures "
            "cost. Goals were set before anything was measured."
        )
    ]
    try:
        record = read_record(folder / "runs.json", RunsRecord)
    except RecordError as error:
        blocks.append(Note("warning", "A record was left out", (Bullets((md("{reason}", reason=str(error)),)),)))
    else:
        blocks += (
            _record_blocks(record)
            if record
            else [Note("question", "Pending", (Paragraph("No measurement is recorded."), CodeBlock(COMMAND, "bash")))]
        )
    return Page(
        "benchmarks/runs",
        "What recording costs",
        tuple(blocks),
        description="Time to append a row, to read thousands of runs, and what W&B's failures cost.",
        provenance=Provenance(
            (("Code", f"altgrad {altgrad.__version__}"), ("Built", "from local records; no network was used"))
        ),
    )


def _record_blocks(record: RunsRecord) -> list[Block]:
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    sizes = ", ".join(f"{value:,} {name}" for name, value in record.sizes.items())
    busy = f" Load average when it began: {record.load:g} on {record.cores} cores." if record.load is not None else ""
    rows = tuple(
        (
            figure.name,
            f"{figure.value:.3g} {figure.unit}",
            "" if figure.goal is None else f"{figure.goal:g} {figure.unit}",
            "" if figure.floor is None else f"{figure.value / figure.floor:.2f} x {figure.floor_name}",
            "" if figure.goal_ratio is None else f"{figure.goal_ratio:g}",
            {True: "met", False: "missed", None: ""}[figure.met],
            figure.reason,
        )
        for figure in record.figures
    )
    columns: tuple[Column | str, ...] = (
        "Figure", *common.right("Measured", "Goal"), "Against the floor", *common.right("Goal"), "Result", "Remark",
    )  # fmt: skip
    return [
        Paragraph(f"Measured on {record.date:%Y-%m-%d} with {packages}; {sizes}.{busy}"),
        Table(
            columns, rows, "Time of writing and reading records",
            data=pd.DataFrame([figure.model_dump() for figure in record.figures]), id="runs",
        ),
        Paragraph("To measure again:"),
        CodeBlock(COMMAND, "bash"),
    ]  # fmt: skip
