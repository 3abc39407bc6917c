"""What recording runs and building the site cost: the records of two benchmarks and the pages made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from altgrad.pages import Block, CodeBlock, Heading, Page, Paragraph
from altgrad.reports import columns as col
from altgrad.reports import measured
from altgrad.reports.measured import COMMANDS, RECORDED, RESULT, Measured, Positive, Record, found


class Figure(Record):
    """One figure, against a goal and a floor of the same run where there are such; smaller is better."""

    name: str
    value: float = Field(ge=0)
    unit: str
    goal: Positive | None = None  # the largest value that was aimed at
    floor: Positive | None = None  # what the least that must be done took in the same run, in `unit`
    floor_name: str = ""
    goal_ratio: Positive | None = None  # the largest ratio of value to floor that was aimed at
    reason: str = ""  # of a missed goal, or what to know beside the figure

    @property
    def times_floor(self) -> float | None:
        """The value over the floor; None without one."""
        return self.value / self.floor if self.floor else None

    @property
    def met(self) -> bool | None:
        """Whether every goal is met; None without one."""
        aims = ((self.value, self.goal), (self.times_floor or 0.0, self.goal_ratio))
        met = [value <= aim for value, aim in aims if aim is not None]
        return all(met) if met else None


class Costs(Measured):
    """What one script measured in one run, beside the least that must be done."""

    code: str  # the bytes of the library, as a digest
    sizes: dict[str, int]  # of what was measured, by name
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


_FIGURES = (
    col.text("Figure", "name"),
    col.filled("Measured", "{value:.3g} {unit}"),
    col.filled("Goal", "{goal:g} {unit}", blank=""),
    col.filled("Against the floor", "{times_floor:.2f} x {floor_name}", right=False, blank=""),
    col.filled("Goal", "{goal_ratio:g}", blank=""),
    col.of("Result", lambda row: RESULT[row["met"]]),
    col.filled("Remark", "{reason}", right=False),
)


def runs_costs_page(folder: Path = RECORDED) -> Page:
    """What recording costs, from the record in `folder`; pending where there is none, and a damaged one is named."""
    about = (
        "What writing a run's record costs a training loop, how long reading many takes, and what W&B's failures cost. "
        "Goals were set before anything was measured."
    )
    blocks = [Paragraph(about), *_blocks(folder / "runs.json", RunsRecord, "Time of writing and reading records")]
    summary = "Time to append a row, to read thousands of runs, and what W&B's failures cost."
    return measured.page("benchmarks/runs", "What recording costs", summary, blocks)


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
        *_blocks(folder / "site.json", SiteRecord, "Time of building and serving"),
        Heading("A keystroke"),
        Paragraph(typed),
        *_blocks(folder / "keystrokes.json", KeystrokesRecord, "Time to answer a keystroke"),
    ]
    summary = "Time of cold and warm builds and of edits, against as many empty pages; time to answer a keystroke."
    return measured.page("benchmarks/site", "What the site costs", summary, blocks)


def _blocks(path: Path, kind: type[Costs], caption: str) -> list[Block]:
    record, absent = found(path, kind)
    if record is None:
        return absent
    sizes = ", ".join(f"{value:,} {name}" for name, value in record.sizes.items())
    return [
        Paragraph(f"{record.measured}; {sizes}.{record.busy}"),
        measured.table(record.figures, _FIGURES, caption, path.stem),
        Paragraph("To measure again:"),
        CodeBlock(COMMANDS[path.name], "bash"),
    ]
