"""What the benchmarks of the kernel recorded: the shape of their two records, and the page that is made from them.

`benchmarks/quantize.py` and `benchmarks/exhaustive.py` write the records through the classes here, so that whatever a
page reads was checked in one place. Nothing here imports torch: the page is built where none is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

import altgrad
from altgrad.analysis import words
from altgrad.formats import get_format
from altgrad.pages import (
    PALETTE,
    Block,
    Bullets,
    ChartBlock,
    CodeBlock,
    Column,
    Heading,
    Md,
    Note,
    Page,
    Paragraph,
    escape,
)
from altgrad.reports import charts, measured
from altgrad.reports import columns as col
from altgrad.reports.measured import RECORDED, RESULT, Measured, Positive, Record, Some, found, not_measured
from altgrad.runs.schema import digest

ALL_INPUTS = 1 << 32
"""How many float32 inputs there are."""
_UNITS = {"copy": "one copy", "two copies": "two copies", "torch cast": "torch's cast"}
_FORMS = {"compiled": "when compiled", "eager": "in eager form"}
_BUSY = 0.5
_COMMANDS = """make bench        # a few minutes; installs the other tools, and builds one of them
make exhaustive   # all 2^32 inputs, seven times
.venv/bin/python benchmarks/quantize.py --device cuda"""


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

    @property
    def known(self) -> list[Timing]:
        """The rows that have a figure."""
        return [row for row in self.timings if row.ratio is not None]


def kernel_fingerprint() -> str:
    """First 12 hex of a sha256 over the source of the kernel and of the formats: names and bytes."""
    total = hashlib.sha256()
    for name in ("formats.py", "rounding.py"):
        total.update(name.encode() + b"\0" + (Path(altgrad.__file__).parent / name).read_bytes() + b"\0")
    return total.hexdigest()[:12]


def benchmarks_page(folder: Path = RECORDED) -> Page:
    """The page, from the records in `folder`; what is not recorded is pending, a damaged record is named."""
    speed, no_speed = found(folder / "quantize.json", QuantizeRecord)
    exact, no_exact = found(folder / "exhaustive.json", ExhaustiveRecord, "No comparison on all inputs is recorded.")
    again = (
        "Close what else computes, then measure. The exhaustive comparison may be stopped with Ctrl-C and goes on from "
        "there. The last line needs a GPU and a CUDA build of torch, and adds its section to the record."
    )
    blocks: list[Block] = [
        Paragraph(_answer(speed, exact)),
        *_cautions(speed, exact),
        *(_speed(speed) if speed else [Heading("Speed"), *no_speed]),
        Heading("Every float32 input", anchor="exhaustive"),
        *(_exact(exact) if exact else no_exact),
        Heading("Run it again"),
        Paragraph(again),
        CodeBlock(_COMMANDS, "bash"),
    ]
    about = (
        "What rounding a tensor costs, against other tools and a plain copy, and how it was checked on every float32 "
        "input."
    )
    records = ", ".join(f"{name} (sha256 {sha[:12]})" for name, sha in _files(folder)) or "none"
    code = f", kernel fingerprint {kernel_fingerprint()}"
    return measured.page("benchmarks/index", "Benchmarks", about, blocks, records, code)


def benchmarks_key(site_key: str, folder: Path = RECORDED) -> str:
    """What the page depends on, as one digest: the site's own key and the bytes of the records."""
    return digest(site_key, _files(folder))


def _files(folder: Path) -> list[tuple[str, str]]:
    """Every record's name and its sha256."""
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.glob("*.json"))]


def times(ratio: float | None) -> str:
    """A ratio with three digits."""
    return "–" if ratio is None else f"{ratio:.3g}" if ratio < 100 else f"{ratio:.0f}"


def _answer(speed: QuantizeRecord | None, exact: ExhaustiveRecord | None) -> Md:
    known = speed.known if speed else []
    plain = [row for row in known if (row.group, row.name, row.small) == ("ours", "plain", False)]
    own = {row.form: times(row.ratio) for row in reversed(plain)}  # of several formats the first: E4M3
    told = words.names([f"{own[form]} {said}" for form, said in _FORMS.items() if form in own])
    parts = [
        f"**The time to round a tensor onto an 8-bit grid, in copies of it: {told}.**"
        if told
        else "**What rounding a tensor costs: pending.**"
    ]
    peers = sorted((row for row in known if row.group == "peer"), key=lambda row: row.ratio or 0)
    if told and peers:
        best, worst = (f"{times(row.ratio)} ({escape(row.label)})" for row in (peers[0], peers[-1]))
        parts.append(f"Other tools, in {len(peers)} ways beside it: {best} to {worst}.")
    if whole := [sweep for sweep in exact.sweeps if sweep.inputs == ALL_INPUTS] if exact else []:
        parts.append(
            f"Compared bit for bit on all {ALL_INPUTS:,} float32 inputs, {len(whole)} times over, its results have "
            f"{sum(sweep.mismatches for sweep in whole):,} mismatches."
        )
    return Md(" ".join(parts))


def _cautions(speed: QuantizeRecord | None, exact: ExhaustiveRecord | None) -> list[Block]:
    kernel, told = kernel_fingerprint(), {}
    if speed:
        busy = (
            f"The machine was not idle: a load average of {speed.load or 0:g} on {speed.cores} cores when the "
            "measurement began. Ratios bear that better than times; the spreads tell how well."
        )
        told = {
            "The speeds are from a quick trial of the machinery, and mean little.": speed.quick,
            busy: (speed.load or 0) > _BUSY,
            "The kernel's source has changed since its speed was measured.": speed.kernel != kernel,
        }
    compared = [sweep.kernel for sweep in exact.sweeps] if exact else []
    told["The kernel's source has changed since it was compared on all inputs."] = any(map(kernel.__ne__, compared))
    notes = tuple(text for text, holds in told.items() if holds)
    return [Note("info", "Before you rely on this", (Bullets(notes),))] if notes else []


def _ratio(title: str) -> Column:
    return col.of(title, lambda row: times(row["ratio"]), right=True)


def _mebibytes(title: str, key: str) -> Column:
    return col.of(title, lambda row: None if row[key] is None else f"{row[key] / 2**20:.1f}", right=True)


_FORMAT, _FORM = col.text("Format", "format"), col.of("Form", lambda row: row["form"])
_SPREAD = col.of("Spread", lambda row: row["spread"], right=True)
_GOALS = (
    col.of("Goal, at most", lambda row: f"{row['goal']:g} x {_UNITS[row['unit']]}", right=True),
    _ratio("Measured"),
    col.of("Result", lambda row: RESULT[row["met"]] or "pending"),
    col.of("Why", lambda row: row["why"], sortable=False),
)
_KERNEL = (
    col.text("What", "name"),
    _FORMAT,
    _FORM,
    _ratio("Ratio"),
    _SPREAD,
    col.of("Measured against", lambda row: row["error"] or _UNITS[row["unit"]]),
)
_PEERS = (
    col.text("Tool", "name"),
    col.of("Version", lambda row: row["version"] or "not installed"),
    _FORMAT,
    _ratio("Copies"),
    _SPREAD,
    col.count("Results that differ", "differing"),
    col.of("Another meaning", lambda row: row["error"] or row["remark"]),
)
_SMALL = (
    _FORMAT,
    _FORM,
    col.of("Time (µs)", lambda row: row["seconds"] and f"{1e6 * row['seconds']:.3g}", right=True),
    col.of("Ratio to torch's cast", lambda row: row["error"] or times(row["ratio"]), right=True),
    _SPREAD,
)
_SCRATCH = (
    col.text("Eager form", "name"),
    _mebibytes("Tensor (MiB)", "tensor_bytes"),
    _mebibytes("Scratch (MiB)", "scratch_bytes"),
    _mebibytes("Goal, at most (MiB)", "goal_bytes"),
    col.of("Result", lambda row: row["error"] or RESULT[row["met"]]),
)
_SWEEPS = (
    col.of("Format", lambda row: _label(row["format"])),
    col.text("Beyond the maximum", "overflow"),
    col.text("Compared with", "oracle"),
    col.filled("Inputs", "{inputs:,}"),
    col.filled("Mismatches", "{mismatches:,}"),
    _FORM,
    col.filled("Date", "{date:%Y-%m-%d}", right=False),
    col.of("Versions", lambda row: measured.packages(row["versions"])),
)


def _speed(record: QuantizeRecord) -> list[Block]:
    """Chart, goals, the kernel's forms, other tools, small tensors, memory, a GPU: what was measured of these."""
    rows, size = record.timings, " x ".join(map(str, record.small_shape))
    height, width = record.shape
    conditions = (
        f"One process, {record.threads} thread{'s' if record.threads > 1 else ''} of a machine with {record.cores} "
        f"cores, normally distributed float32 numbers, {height:,} x {width:,} of them, results written into memory "
        f"that is there. A copy of that tensor took {1e3 * record.copy_seconds:.3g} ms. Each figure is the best of "
        "several calls over the best of the copies between them; the spread is that of five such figures. "
        f"{record.measured}."
    )
    counted = (
        "AltGrad's kernel. Counted: with overflow, underflow and the spacing of the grid; against two copies, because "
        "it writes two tensors"
    )
    others = (
        "The same tensor through what others offer, each in the fastest form it has for float32 tensors. Results that "
        "differ are counted against AltGrad's; where formats mean different things, a few telling inputs say how."
    )
    memory = "Memory beside input and output: by how much a fresh process's peak grows, the code that it loads included"
    goals = [row for row in rows if row.goal is not None]
    done = [row.met for row in goals if row.met is not None]
    aims = f"{sum(done)} of the {len(done)} goals that were measured are met. They were set before this measurement."
    what = col.of("What", lambda row: f"{row['label']}, {row['form']}{f', {size}' if row['small'] else ''}")
    multiples = "Goals, as multiples of what they are measured against"
    small = [row for row in rows if row.small]
    cast = f"A tensor of {size} against torch's cast to 8 bits and back into memory that is there"
    own, peers = ([row for row in rows if row.group == group and not row.small] for group in ("ours", "peer"))
    parts: tuple[tuple[str, str, Sequence[Record], tuple[Column, ...], str, str], ...] = (
        ("Goals", aims, goals, (what, *_GOALS), multiples, "goals"),
        ("The kernel's forms", conditions, own, _KERNEL, counted, "kernel"),
        ("Other tools", others, peers, _PEERS, "Other tools, in copies of the tensor", "peers"),
        ("Small tensors", "", small, _SMALL, cast, "small"),
        ("Memory", "", record.scratch, _SCRATCH, memory, ""),
    )
    blocks = _chart(record)
    for heading, text, shown, columns, caption, name in parts:
        if shown:
            blocks += [Heading(heading), *([Paragraph(text)] if text else [])]
            blocks.append(measured.table(shown, columns, caption, name))
    return [*blocks, Heading("On a GPU"), _accelerator(record.accelerator)]


def _chart(record: QuantizeRecord) -> list[Block]:
    """Other tools, and our forms in E4M3, the shortest time first."""
    shown = sorted(
        (
            row
            for row in record.known
            if not row.small
            and row.unit == "copy"
            and (row.group == "peer" or (row.name in ("plain", "stochastic") and row.format == "E4M3"))
        ),
        key=lambda row: row.ratio or 0,
    )
    if not shown:
        return []
    own = {"plain": "AltGrad ", "stochastic": "AltGrad stochastic "}
    names = [row.label if row.group == "peer" else own[row.name] + row.form for row in shown]
    data = measured.frame(shown)[["group", "ratio", "low", "high"]].rename(columns={"ratio": "copies"})
    data.insert(0, "what", names)
    height, width = record.shape
    chart = charts.bars(
        "cost",
        f"Time to round {height:,} x {width:,} float32 numbers, in copies of the same tensor",
        "Horizontal bars on a logarithmic scale, shortest first, AltGrad's forms in a colour of their own.",
        data,
        "what",
        "copies",
        "time in copies of the tensor (log scale); the line is one copy",
        [PALETTE[0 if row.group == "ours" else 7] for row in shown],
        times,
    )
    return [ChartBlock(chart)]


def _accelerator(found: Accelerator | None) -> Block:
    if found is None:
        command = ".venv/bin/python benchmarks/quantize.py --device cuda"
        return not_measured("Not measured yet: no GPU was at hand.", command)
    return Paragraph(
        f"On {found.device}, the compiled kernel moves {found.quantize_bandwidth / 1e9:,.0f} GB a second, "
        f"{found.quantize_bandwidth / found.copy_bandwidth:.0%} of what a copy there moves "
        f"({found.copy_bandwidth / 1e9:,.0f} GB), on {found.elements:,} numbers. Of {found.compared:,} results "
        f"compared with the processor's, {found.differing:,} differ in a bit. Measured on {found.date:%Y-%m-%d} with "
        f"torch {found.torch}."
    )


def _exact(record: ExhaustiveRecord) -> list[Block]:
    text = (
        f"There are {ALL_INPUTS:,} float32 numbers, few enough to try them all. Every result was compared bit for bit "
        "with that of an independent implementation, signs of zero included; all NaNs count as one. Rounding is to the "
        "nearest value, ties to even."
    )
    caption, nested = "The kernel against independent implementations", {"versions", "first_mismatches"}
    shown = measured.table(record.sweeps, _SWEEPS, caption, "sweeps", nested)
    lines = "\n".join(f"{sweep.case}: {line}" for sweep in record.sweeps for line in sweep.first_mismatches)
    note = [Note("warning", "The first mismatches", (CodeBlock(lines),))] if lines else []
    return [Paragraph(text), shown, *note]


def _label(name: str) -> str:
    """A format's label; a name that is none as it is."""
    try:
        return get_format(name).label
    except ValueError:
        return name
