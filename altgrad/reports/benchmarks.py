"""What the benchmarks of the kernel recorded: the shape of their two records, and the page that is made from them.

`benchmarks/quantize.py` and `benchmarks/exhaustive.py` write the records through the classes here, so that whatever a
page reads was checked in one place. Nothing here imports torch: the page is built where none is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import AwareDatetime, Field

import altgrad
from altgrad.formats import get_format
from altgrad.reports import charts, measured
from altgrad.reports import columns as col
from altgrad.reports.measured import RECORDED, RESULT, Measured, Positive, Record, Some, found
from altgrad.runs.schema import digest
from altgrad.site import PALETTE, Block, ChartBlock, CodeBlock, Column, Md, Page, code, escape, md
from altgrad.text import minus

ALL_INPUTS = 1 << 32
"""How many float32 inputs there are."""
_UNITS = {"copy": "one copy", "two copies": "two copies", "torch cast": "torch's cast"}


class Sweep(Record):
    """One comparison of the kernel with an oracle, bit for bit, over many float32 inputs."""

    case: str  # its name on the command line
    format: str  # of our catalogue
    overflow: Literal["saturates", "infinity", "NaN"]  # what becomes of numbers beyond the largest value
    rounding: str  # one of `formats.ROUNDINGS`
    form: Literal["compiled", "eager"]
    oracle: str  # what it was compared with, and how
    versions: dict[str, str]  # of the packages that took part
    inputs: Some  # how many were compared; `ALL_INPUTS` is all of them
    mismatches: int = Field(ge=0)  # in any bit, NaNs of any kind taken as one; a NaN on one side only counts
    first_mismatches: tuple[str, ...] = ()
    seconds: float = Field(ge=0)
    date: AwareDatetime
    altgrad: str
    kernel: str  # `kernel_fingerprint`


class ExhaustiveRecord(Record):
    """benchmarks/recorded/exhaustive.json."""

    benchmark: Literal["exhaustive"] = "exhaustive"
    sweeps: tuple[Sweep, ...] = Field(min_length=1)


class Timing(Record):
    """The time of one way to round a tensor, relative to plain work on the same tensor in the same run."""

    name: str
    group: Literal["ours", "peer"]
    form: Literal["eager", "compiled", ""] = ""  # "" for a peer
    format: str  # what was rounded to
    unit: Literal["copy", "two copies", "torch cast"] = "copy"  # what the ratio is to
    small: bool = False  # on the small tensor
    shape: tuple[int, int] | None = None  # of the tensor
    vectors: str = ""  # the instructions that torch's own loops use
    out: bool = False  # into memory that is there
    ratio: Positive | None = None  # best time over the unit's best time; None where it could not be measured
    low: Positive | None = None  # the smallest and the largest ratio of the repeats
    high: Positive | None = None
    seconds: Positive | None = None  # the best time
    goal: Positive | None = None  # the largest ratio that was aimed at
    met: bool | None = None
    differing: int | None = Field(default=None, ge=0)  # from our results; None where they are to differ
    version: str | None = None  # a peer's
    remark: str = ""  # what a reader should know beside the figure
    error: str | None = None  # why it could not be measured

    @property
    def label(self) -> str:
        """What was measured, in which format."""
        return f"{self.name}, {self.format}"

    @property
    def how(self) -> str:
        """The tensor's shape, whether the result is written into memory that is there, and the vector instructions."""
        if self.shape is None:
            return "–"
        size = " x ".join(f"{side:,}" for side in self.shape)
        return ", ".join(filter(None, [size, "out=" if self.out else "", self.vectors]))

    @property
    def spread(self) -> str:
        """Of the repeats; a dash where it is not known."""
        return "–" if self.low is None or self.high is None else f"{times(self.low)} to {times(self.high)}"

    @property
    def why(self) -> Md:
        """Of a goal that was missed or could not be measured, whole, however long."""
        if self.error or self.met is not False or self.ratio is None or self.goal is None:
            return escape(self.error or "")
        return escape(f"{self.ratio / self.goal - 1:.0%} above the goal; repeats from {self.spread}. {self.remark}")


class Scratch(Record):
    """Memory that the eager form needs beside its input and output: the growth of a fresh process's peak."""

    name: str
    tensor_bytes: Some
    scratch_bytes: int | None = Field(default=None, ge=0)
    goal_bytes: Some
    met: bool | None = None
    error: str | None = None


class Accelerator(Record):
    """The compiled kernel on a GPU, against a copy there."""

    device: str
    torch: str
    elements: Some  # of the float32 tensor
    copy_bandwidth: Positive  # bytes read and written a second
    quantize_bandwidth: Positive
    compared: Some  # inputs whose results were compared with the processor's
    differing: int = Field(ge=0)  # in a bit
    date: AwareDatetime
    altgrad: str
    kernel: str


class QuantizeRecord(Measured):
    """benchmarks/recorded/quantize.json."""

    benchmark: Literal["quantize"] = "quantize"
    kernel: str
    quick: bool  # a trial of the machinery with few repeats; its figures mean little
    shape: tuple[int, int]  # of the large float32 tensor
    small_shape: tuple[int, int]
    threads: Some
    copy_seconds: Positive  # best time of one copy of the large tensor
    timings: tuple[Timing, ...]
    scratch: tuple[Scratch, ...] = ()
    accelerator: Accelerator | None = None  # once it was run with ``--device cuda``


def kernel_fingerprint() -> str:
    """First 12 hex of a sha256 over the source of the kernel, its draws, its scales and the formats: names, bytes."""
    total = hashlib.sha256()
    for name in ("formats.py", "scratch.py", "draws.py", "rounding.py", "scaling.py"):
        total.update(name.encode() + b"\0" + (Path(altgrad.__file__).parent / name).read_bytes() + b"\0")
    return total.hexdigest()[:12]


def benchmarks_page(folder: Path = RECORDED) -> Page:
    """The page, from the records in `folder`; what is not recorded is pending, a damaged record is named."""
    speed, no_speed = found(folder / "quantize.json", QuantizeRecord)
    exact, no_exact = found(folder / "exhaustive.json", ExhaustiveRecord, "No comparison on all inputs is recorded.")
    timings, sweeps = speed.timings if speed else (), exact.sweeps if exact else ()
    ours, peers = ([row for row in timings if row.group == group and not row.small] for group in ("ours", "peer"))
    rows: dict[str, Sequence[Record]] = {
        "goals": [row for row in timings if row.goal is not None],
        "kernel": ours,
        "peers": peers,
        "small": [row for row in timings if row.small],
        "memory": speed.scratch if speed else (),
        "sweeps": sweeps,
    }
    mismatches = "\n".join(f"{sweep.case}: {line}" for sweep in sweeps for line in sweep.first_mismatches)
    plain = {row.form: row.ratio for row in reversed(ours) if row.name == "plain" and row.ratio}  # E4M3 is the first
    bars = {(row.name, row.format, row.form): row.ratio for row in reversed([*ours, *peers]) if row.unit == "copy"}
    values = {
        "speed": speed,
        "no_speed": no_speed,
        "exact": exact,
        "no_exact": no_exact,
        "rows": rows,
        "plain": {"compiled": None, "eager": None} | plain,
        "allocated": bars.get(("plain, result allocated", "E4M3", "eager")),
        "e5m2": {form: bars.get(("plain", "E5M2", form)) for form in ("compiled", "eager")},
        "cast": {fmt: bars.get(("torch, cast and back", fmt, "")) for fmt in ("E4M3", "E5M2")},
        "ranked": sorted((row for row in peers if row.ratio), key=lambda row: row.ratio or 0),
        "inputs": ALL_INPUTS,
        "whole": [sweep for sweep in sweeps if sweep.inputs == ALL_INPUTS],
        "kernel": kernel_fingerprint(),
        "times": times,
    }
    parts = {name: measured.table(rows[name], columns, title, name) for name, (title, columns) in _TABLES.items()}
    parts["cost"] = _chart(ours, peers)
    parts["mismatches"] = [CodeBlock(mismatches)] if mismatches else []
    records = ", ".join(f"{name} (sha256 {sha[:12]})" for name, sha in _files(folder)) or "none"
    return measured.page("benchmarks/index", values, parts, records, f", kernel fingerprint {kernel_fingerprint()}")


def benchmarks_key(site_key: str, folder: Path = RECORDED) -> str:
    """What the page depends on, as one digest: the site's own key and the bytes of the records."""
    return digest(site_key, _files(folder))


def _files(folder: Path) -> list[tuple[str, str]]:
    """Every record's name and its sha256."""
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.glob("*.json"))]


def times(ratio: float | None) -> str:
    """A ratio with three digits."""
    return "–" if ratio is None else f"{ratio:.3g}" if ratio < 100 else f"{ratio:.0f}"


def _label(name: str) -> str:
    """A format's label; a name that is none as it is."""
    try:
        return get_format(name).label
    except ValueError:
        return name


def _earlier(row: col.Row) -> Md:
    """The fingerprint of a kernel whose source has changed since."""
    return md("{kernel}, changed since", kernel=code(row["kernel"]))


def _ratio(title: str) -> Column:
    return col.of(title, lambda row: times(row["ratio"]), right=True)


def _mebibytes(title: str, key: str) -> Column:
    return col.of(title, lambda row: None if row[key] is None else f"{row[key] / 2**20:.1f}", right=True)


_FORMAT, _FORM = col.text("Format", "format"), col.text("Form", "form")
_SPREAD = col.of("Spread", lambda row: row["spread"], right=True)
_HOW = col.text("Tensor", "how")
_TABLES = {
    "goals": (
        "Goals",
        (
            col.of("What", lambda row: f"{row['label']}, {row['form']}{', small tensor' if row['small'] else ''}"),
            col.of("Goal, at most", lambda row: f"{row['goal']:g} x {_UNITS[row['unit']]}", right=True),
            _ratio("Measured"),
            col.of("Result", lambda row: RESULT[row["met"]] or "pending"),
            col.of("Why", lambda row: row["why"], sortable=False),
        ),
    ),
    "kernel": (
        "AltGrad's kernel",
        (
            col.text("What", "name"),
            _FORMAT,
            _FORM,
            _ratio("Ratio"),
            _SPREAD,
            col.of("Measured against", lambda row: row["error"] or _UNITS[row["unit"]]),
            _HOW,
        ),
    ),
    "peers": (
        "Other tools, in copies of the tensor",
        (
            col.text("Tool", "name"),
            col.of("Version", lambda row: row["version"] or "not installed"),
            _FORMAT,
            _ratio("Copies"),
            _SPREAD,
            _HOW,
            col.count("Results that differ", "differing"),
            col.of("Another meaning", lambda row: row["error"] or minus(row["remark"])),
        ),
    ),
    "small": (
        "Small tensors, against torch's cast",
        (
            _FORMAT,
            _FORM,
            col.of("Time (µs)", lambda row: row["seconds"] and f"{1e6 * row['seconds']:.3g}", right=True),
            col.of("Ratio to torch's cast", lambda row: row["error"] or times(row["ratio"]), right=True),
            _SPREAD,
        ),
    ),
    "memory": (
        "Memory beside input and output",
        (
            col.text("Eager form", "name"),
            _mebibytes("Tensor (MiB)", "tensor_bytes"),
            _mebibytes("Scratch (MiB)", "scratch_bytes"),
            _mebibytes("Goal, at most (MiB)", "goal_bytes"),
            col.of("Result", lambda row: row["error"] or RESULT[row["met"]]),
        ),
    ),
    "sweeps": (
        "The kernel against independent implementations",
        (
            col.of("Format", lambda row: _label(row["format"])),
            col.text("Beyond the maximum", "overflow"),
            col.text("Compared with", "oracle"),
            col.filled("Inputs", "{inputs:,}"),
            col.filled("Mismatches", "{mismatches:,}"),
            col.of(
                "Kernel", lambda row: code(row["kernel"]) if row["kernel"] == kernel_fingerprint() else _earlier(row)
            ),
            _FORM,
            col.filled("Date", "{date:%Y-%m-%d}", right=False),
            col.of("Versions", lambda row: measured.packages(row["versions"])),
        ),
    ),
}


def _chart(ours: Sequence[Timing], peers: Sequence[Timing]) -> list[Block]:
    """Other tools, and our forms in E4M3, the shortest time first."""
    own = {"plain": "AltGrad ", "stochastic": "AltGrad stochastic "}
    named = [(own[row.name] + row.form, row) for row in ours if row.name in own and row.format == "E4M3"]
    named += [(row.label, row) for row in peers]
    shown = [
        {"what": name, "group": row.group, "copies": row.ratio, "low": row.low, "high": row.high}
        for name, row in named
        if row.ratio and row.unit == "copy"
    ]
    if not shown:
        return []
    data = pd.DataFrame(shown).sort_values("copies", kind="stable")
    chart = charts.bars(
        "cost",
        "Time to round",
        data,
        "what",
        "copies",
        "copies of the tensor (logarithmic); line: one copy",
        [PALETTE[0 if group == "ours" else 7] for group in data["group"]],
        times,
    )
    return [ChartBlock(chart)]
