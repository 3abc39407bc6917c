"""What recording runs and building the site cost: the records of two benchmarks and the pages made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import AwareDatetime, Field

import altgrad
from altgrad.pages import Block, Bullets, CodeBlock, Column, Heading, Note, Page, Paragraph, Provenance, Table, md
from altgrad.reports import columns as col
from altgrad.reports.benchmarks import RECORDED, Record, read_record
from altgrad.runs.schema import RecordError


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


class Costs(Record):
    """What one script measured in one run, beside the least that must be done.

    Attributes:
        date, altgrad, code: when, by which version and bytes of the library.
        cores, load: of the machine; the one-minute load average when it began.
        versions: of the packages that took part.
        sizes: of what was measured, by name.
        figures: what was measured.
    """

    date: AwareDatetime
    altgrad: str
    code: str
    cores: int = Field(gt=0)
    load: float | None = None
    versions: dict[str, str]
    sizes: dict[str, int]
    figures: tuple[Figure, ...]


class RunsRecord(Costs):
    """benchmarks/recorded/runs.json."""

    benchmark: Literal["runs"] = "runs"


class SiteRecord(Costs):
    """benchmarks/recorded/site.json."""

    benchmark: Literal["site"] = "site"


class KeystrokesRecord(Costs):
    """benchmarks/recorded/keystrokes.json."""

    benchmark: Literal["keystrokes"] = "keystrokes"


def runs_costs_page(folder: Path = RECORDED) -> Page:
    """What recording costs, from the record in `folder`; pending where there is none, and a damaged one is named."""
    about = (
        "What writing a run's record costs a training loop, how long reading many takes, and what W&B's failures cost. "
        "Goals were set before anything was measured."
    )
    blocks = _blocks(folder / "runs.json", RunsRecord, "Time of writing and reading records", "make bench-runs")
    summary = "Time to append a row, to read thousands of runs, and what W&B's failures cost."
    return _page("benchmarks/runs", "What recording costs", [Paragraph(about), *blocks], summary)


def site_costs_page(folder: Path = RECORDED) -> Page:
    """What building the site and using it costs, from the records in `folder`; pending where there is none."""
    about = (
        "How long the site takes to build without a cache (cold), with one (warm), and until an edit is on the page "
        "while it is served; against the same number of empty pages with the same theme in the same run. Goals were "
        "set before anything was measured."
    )
    typed = (
        "How long a reader waits for the Explorer and for the table of runs after a keystroke: from its event to the "
        "first frame painted after the answer is on the page, in a browser on the same machine."
    )
    blocks = [
        Paragraph(about),
        *_blocks(folder / "site.json", SiteRecord, "Time of building and serving", "make bench-site"),
        Heading("A keystroke"),
        Paragraph(typed),
        *_blocks(folder / "keystrokes.json", KeystrokesRecord, "Time to answer a keystroke", "make bench-keystrokes"),
    ]
    summary = "Time of cold and warm builds and of edits, against as many empty pages; time to answer a keystroke."
    return _page("benchmarks/site", "What the site costs", blocks, summary)


def _page(path: str, title: str, blocks: list[Block], summary: str) -> Page:
    lines = (("Code", f"altgrad {altgrad.__version__}"), ("Built", "from local records; no network was used"))
    return Page(path, title, tuple(blocks), description=summary, provenance=Provenance(lines))


def _blocks(path: Path, kind: type[Costs], caption: str, command: str) -> list[Block]:
    try:
        record = read_record(path, kind)
    except RecordError as error:
        return [Note("warning", "A record was left out", (Bullets((md("{reason}", reason=str(error)),)),))]
    if record is None:
        return [Note("question", "Pending", (Paragraph("No measurement is recorded."), CodeBlock(command, "bash")))]
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
        "Figure", *col.right("Measured", "Goal"), "Against the floor", *col.right("Goal"), "Result", "Remark",
    )  # fmt: skip
    data = pd.DataFrame([figure.model_dump() for figure in record.figures])
    return [
        Paragraph(f"Measured on {record.date:%Y-%m-%d} with {packages}; {sizes}.{busy}"),
        Table(columns, rows, caption, data=data, id=path.stem),
        Paragraph("To measure again:"),
        CodeBlock(command, "bash"),
    ]
