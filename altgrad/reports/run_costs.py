"""What runs, the site and a GPU cost: the records of benchmarks that are figures, and the pages made from them."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from altgrad.imports import code_fingerprint
from altgrad.reports import columns as col
from altgrad.reports import measured
from altgrad.reports.measured import RECORDED, RESULT, Measured, Positive, Record, Some, found
from altgrad.site import Block, Page


class Figure(Record):
    """One figure, against a goal and a floor of the same run where there are such; smaller is better."""

    name: str
    value: float = Field(ge=0)
    unit: str
    goal: float | None = Field(default=None, ge=0)  # the largest value that was aimed at
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

    @property
    def extent(self) -> str:
        """``1,000 runs, 60 metrics``."""
        return ", ".join(f"{value:,} {name}" for name, value in self.sizes.items())


class RunsRecord(Costs):
    """benchmarks/recorded/runs.json."""

    benchmark: Literal["runs"] = "runs"


class SiteRecord(Costs):
    """benchmarks/recorded/site.json."""

    benchmark: Literal["site"] = "site"


class KeystrokesRecord(Costs):
    """benchmarks/recorded/keystrokes.json."""

    benchmark: Literal["keystrokes"] = "keystrokes"


class ProcessesRecord(Costs):
    """benchmarks/recorded/processes.json."""

    benchmark: Literal["processes"] = "processes"


class Growth(Record):
    """What one step takes with more and more runs."""

    name: str
    runs: tuple[Some, ...] = Field(min_length=2)
    seconds: tuple[Positive, ...]  # of the processors, beyond what it takes with no runs
    memory: tuple[Positive, ...]  # the most that one process has, GB
    goal: Positive | None = None  # the largest exponent that was aimed at
    date: datetime | None = None  # where that is not the record's own
    load: float | None = None  # the busiest that the machine was before one of the numbers

    @property
    def exponent(self) -> float:
        """The slope of log seconds over log runs between the two largest numbers of runs."""
        return math.log(self.seconds[-1] / self.seconds[-2]) / math.log(self.runs[-1] / self.runs[-2])

    @property
    def met(self) -> bool | None:
        """Whether the exponent is what was aimed at; None without a goal."""
        return None if self.goal is None else self.exponent <= self.goal


class LargeRecord(Measured):
    """benchmarks/recorded/large.json."""

    benchmark: Literal["large"] = "large"
    code: str
    steps: tuple[Growth, ...]


class Check(Measured):
    """One part of the check of a GPU."""

    part: Literal["rounding", "training", "pair"]
    device: str
    code: str
    figures: tuple[Figure, ...]


class GpuRecord(Record):
    """benchmarks/recorded/gpu.json."""

    benchmark: Literal["gpu"] = "gpu"
    checks: tuple[Check, ...]


_GROWTH = (
    col.text("Step", "name"),
    col.of("Runs", lambda row: ", ".join(f"{each:,}" for each in row["runs"]), right=True),
    col.of("Seconds", lambda row: ", ".join(f"{each:.3g}" for each in row["seconds"]), right=True),
    col.filled("Exponent", "{exponent:.2f}"),
    col.filled("Goal", "{goal:g}", blank=""),
    col.of("Result", lambda row: RESULT[row["met"]]),
    col.of("Memory (GB)", lambda row: ", ".join(f"{each:.2f}" for each in row["memory"]), right=True),
    col.of("Load", lambda row: f"{row['load']:.1f}" if row["load"] is not None else "not known", right=True),
    col.of("Measured", lambda row: f"{row['date']:%Y-%m-%d %H:%M}" if row["date"] else "with the others"),
)
FIGURES = (
    col.text("Figure", "name"),
    col.filled("Measured", "{value:.3g} {unit}"),
    col.filled("Goal", "{goal:g} {unit}", blank=""),
    col.filled("Against the floor", "{times_floor:.2f} x {floor_name}", right=False, blank=""),
    col.filled("Goal", "{goal_ratio:.3g}", blank=""),
    col.of("Result", lambda row: RESULT[row["met"]]),
    col.filled("Remark", "{reason}", right=False),
)


def runs_costs_page(folder: Path = RECORDED) -> Page:
    """What recording costs, from the record in `folder`; pending where there is none, and a damaged one is named."""
    large, no_large = found(folder / "large.json", LargeRecord)
    values = {"large": large, "no_large": no_large}
    parts = {"large": measured.table(large.steps, _GROWTH, "Time with more and more runs", "large") if large else []}
    return _page("benchmarks/runs", folder, values, parts, runs=(RunsRecord, "Time of writing and reading records"))


def site_costs_page(folder: Path = RECORDED) -> Page:
    """What building the site and using it costs, from the records in `folder`; pending where there is none."""
    typed = (KeystrokesRecord, "What a reader waits for")
    return _page("benchmarks/site", folder, {}, {}, site=(SiteRecord, "Time of building and serving"), keystrokes=typed)


def gpu_page(folder: Path = RECORDED) -> Page:
    """What a GPU gave, from the record in `folder`: a table for each part that has run."""
    record, no_record = found(folder / "gpu.json", GpuRecord)
    checks = {check.part: check for check in record.checks} if record else {}
    tables = {
        part: measured.table(check.figures, FIGURES, f"Figures of part {part}", part) for part, check in checks.items()
    }
    values = {"checks": checks, "tables": tables, "no_record": no_record, "now": code_fingerprint("run")}
    return measured.page("benchmarks/gpu", values, {})


def _page(
    path: str, folder: Path, values: dict[str, Any], parts: dict[str, list[Block]], **records: tuple[type[Costs], str]
) -> Page:
    values["now"] = code_fingerprint("page")
    for name, (kind, caption) in records.items():
        record, values[f"no_{name}"] = found(folder / f"{name}.json", kind)
        values[name] = record
        parts[name] = measured.table(record.figures, FIGURES, caption, name) if record else []
    return measured.page(path, values, parts)
