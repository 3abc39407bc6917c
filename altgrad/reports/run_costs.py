"""What recording runs and building the site cost: the records of two benchmarks and the pages made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from altgrad.imports import code_fingerprint
from altgrad.reports import columns as col
from altgrad.reports import measured
from altgrad.reports.measured import RECORDED, RESULT, Measured, Positive, Record, found
from altgrad.site import Block, Page


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
    return _page("benchmarks/runs", folder, runs=(RunsRecord, "Time of writing and reading records"))


def site_costs_page(folder: Path = RECORDED) -> Page:
    """What building the site and using it costs, from the records in `folder`; pending where there is none."""
    typed = (KeystrokesRecord, "What a reader waits for")
    return _page("benchmarks/site", folder, site=(SiteRecord, "Time of building and serving"), keystrokes=typed)


def _page(path: str, folder: Path, **records: tuple[type[Costs], str]) -> Page:
    values: dict[str, Any] = {"now": code_fingerprint("page")}
    parts: dict[str, list[Block]] = {}
    for name, (kind, caption) in records.items():
        record, values[f"no_{name}"] = found(folder / f"{name}.json", kind)
        values[name] = record
        parts[name] = measured.table(record.figures, _FIGURES, caption, name) if record else []
    return measured.page(path, values, parts)
