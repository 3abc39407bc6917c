"""What the benchmarks recorded: the shape of their two records, and the page that is made from them.

`benchmarks/quantize.py` and `benchmarks/exhaustive.py` write the records through the classes here, so that whatever a
page reads was checked in one place. Nothing here imports torch: the page is built where none is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import pandas as pd
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

import altgrad
from altgrad.analysis import words
from altgrad.formats import get_format
from altgrad.pages import (
    FOREGROUND,
    PALETTE,
    Block,
    Bullets,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Heading,
    Md,
    Note,
    Page,
    Paragraph,
    Provenance,
    Table,
    Text,
    join,
    md,
)
from altgrad.reports import columns as col
from altgrad.runs.schema import RecordError, digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECORDED = Path(altgrad.__file__).resolve().parents[1] / "benchmarks" / "recorded"
ALL_INPUTS = 1 << 32
"""How many float32 inputs there are."""
_KERNEL = ("formats.py", "rounding.py")


class Record(BaseModel):
    """A record or a part of one: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Sweep(Record):
    """One comparison of the kernel with an oracle, bit for bit, over many float32 inputs.

    Attributes:
        case: its name on the command line.
        format: of our catalogue.
        overflow: what becomes of numbers beyond the largest value: "saturates", "infinity" or "NaN".
        rounding: one of `formats.ROUNDINGS`.
        form: how the kernel ran.
        oracle: what it was compared with, and how.
        versions: of the packages that took part.
        inputs: how many inputs were compared; `ALL_INPUTS` is all of them.
        mismatches: results that differ in any bit, NaNs of any kind taken as one; a NaN on one side only counts.
        first_mismatches: a line for each of the first few.
        seconds: the time it took.
        date: when it ended.
        altgrad, kernel: version of the library, fingerprint of the kernel's source (`kernel_fingerprint`).
    """

    case: str
    format: str
    overflow: Literal["saturates", "infinity", "NaN"]
    rounding: str
    form: Literal["compiled", "eager"]
    oracle: str
    versions: dict[str, str]
    inputs: int = Field(gt=0)
    mismatches: int = Field(ge=0)
    first_mismatches: tuple[str, ...] = ()
    seconds: float = Field(ge=0)
    date: AwareDatetime
    altgrad: str
    kernel: str


class ExhaustiveRecord(Record):
    """benchmarks/recorded/exhaustive.json."""

    benchmark: Literal["exhaustive"] = "exhaustive"
    sweeps: tuple[Sweep, ...] = ()


class Timing(Record):
    """The time of one way to round a tensor, relative to plain work on the same tensor in the same run.

    Attributes:
        name: what was measured.
        group: "ours" or "peer".
        form: "eager", "compiled"; "" for a peer.
        format: what was rounded to.
        unit: what the ratio is to: one copy of the tensor, two copies, or torch's cast to 8 bits and back.
        small: on the small tensor.
        ratio: best time over the unit's best time; None where it could not be measured.
        low, high: the smallest and the largest ratio of the repeats.
        seconds: the best time.
        goal: the largest ratio that was aimed at, with `met`; None without a goal.
        differing: results that differ from ours in value; None where formats or roundings differ on purpose.
        version: a peer's.
        remark: what a reader should know beside the figure.
        error: why it could not be measured.
    """

    name: str
    group: Literal["ours", "peer"]
    form: Literal["eager", "compiled", ""] = ""
    format: str
    unit: Literal["copy", "two copies", "torch cast"] = "copy"
    small: bool = False
    ratio: float | None = Field(default=None, gt=0)
    low: float | None = Field(default=None, gt=0)
    high: float | None = Field(default=None, gt=0)
    seconds: float | None = Field(default=None, gt=0)
    goal: float | None = Field(default=None, gt=0)
    met: bool | None = None
    differing: int | None = Field(default=None, ge=0)
    version: str | None = None
    remark: str = ""
    error: str | None = None


class Scratch(Record):
    """Memory that the eager form needs beside its input and output: the growth of a fresh process's peak."""

    name: str
    tensor_bytes: int = Field(gt=0)
    scratch_bytes: int | None = Field(default=None, ge=0)
    goal_bytes: int = Field(gt=0)
    met: bool | None = None
    error: str | None = None


class Accelerator(Record):
    """The compiled kernel on a GPU, against a copy there.

    Attributes:
        device: the GPU's name.
        elements: float32 elements of the tensor.
        copy_bandwidth, quantize_bandwidth: bytes read and written a second.
        compared, differing: inputs whose results were compared with the processor's, and those that differ in a bit.
    """

    device: str
    torch: str
    elements: int = Field(gt=0)
    copy_bandwidth: float = Field(gt=0)
    quantize_bandwidth: float = Field(gt=0)
    compared: int = Field(gt=0)
    differing: int = Field(ge=0)
    date: AwareDatetime
    altgrad: str
    kernel: str


class QuantizeRecord(Record):
    """benchmarks/recorded/quantize.json.

    Attributes:
        quick: a trial of the machinery with few repeats; its figures mean little.
        shape: of the large tensor; `small_shape` of the small one. float32.
        cores, threads: of the machine, and used.
        load: processes that wanted a core when it began (the one-minute load average); None where it is not known.
        copy_seconds: best time of one copy of the large tensor.
        accelerator: None until it was run with ``--device cuda``.
    """

    benchmark: Literal["quantize"] = "quantize"
    date: AwareDatetime
    altgrad: str
    kernel: str
    quick: bool
    shape: tuple[int, int]
    small_shape: tuple[int, int]
    cores: int = Field(gt=0)
    threads: int = Field(gt=0)
    load: float | None = Field(default=None, ge=0)
    versions: dict[str, str]
    copy_seconds: float = Field(gt=0)
    timings: tuple[Timing, ...]
    scratch: tuple[Scratch, ...] = ()
    accelerator: Accelerator | None = None


AnyRecord = TypeVar("AnyRecord", bound=Record)
_COMMAND = {
    "quantize.json": "make bench",
    "exhaustive.json": "make exhaustive",
    "runs.json": "make bench-runs",
    "site.json": "make bench-site",
    "keystrokes.json": "make bench-keystrokes",
    "step-slopes.json": ".venv/bin/python benchmarks/step_slopes.py",
}


def kernel_fingerprint() -> str:
    """First 12 hex of a sha256 over the source of the kernel and of the formats: names and bytes."""
    total = hashlib.sha256()
    for name in _KERNEL:
        total.update(name.encode() + b"\0" + (Path(altgrad.__file__).parent / name).read_bytes() + b"\0")
    return total.hexdigest()[:12]


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    """The record in `path`; None where there is no such file.

    Raises:
        RecordError: what the file holds is no such record; one line with file, key and remedy.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(f"benchmarks/recorded/{path.name}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        remedy = _COMMAND.get(path.name, "make bench-training")
        raise RecordError(
            f"benchmarks/recorded/{path.name}: {key}: {first['msg'][:160]}; restore the file (git checkout), or "
            f"delete it and make it again: {remedy}"
        ) from None


def write_record(record: Record, path: Path) -> None:
    """Write the record; a reader finds the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def benchmarks_page(folder: Path = RECORDED) -> Page:
    """The page, from the records in `folder`; what is not recorded is pending, a damaged record is named."""
    problems: list[Md] = []
    speed = _read(folder / "quantize.json", QuantizeRecord, problems)
    exact = _read(folder / "exhaustive.json", ExhaustiveRecord, problems)
    blocks: list[Block] = [Paragraph(_answer(speed, exact)), *_warnings(speed, exact, problems)]
    if speed is not None:
        blocks += [*_chart_blocks(speed), *_goals(speed), *_speed_blocks(speed)]
    else:
        blocks += [Heading("Speed"), _pending("No measurement is recorded.", "make bench")]
    blocks += _exact_blocks(exact)
    blocks += [Heading("Run it again"), Paragraph(_HOW), CodeBlock(_COMMANDS, "bash")]
    return Page(
        "benchmarks/index",
        "Benchmarks",
        tuple(blocks),
        description="What rounding a tensor costs, against other tools and a plain copy, and how it was checked on "
        "every float32 input.",
        provenance=Provenance(
            (
                ("Records", md("{names}", names=_fingerprints(folder))),
                ("Code", f"altgrad {altgrad.__version__}, kernel fingerprint {kernel_fingerprint()}"),
                ("Built", "from local records; no network was used"),
            )
        ),
    )


def benchmarks_key(site_key: str, folder: Path = RECORDED) -> str:
    """What the page depends on, as one digest: the site's own key and the bytes of the records."""
    files = sorted(folder.glob("*.json"))
    return digest(site_key, [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


_HOW = (
    "Close what else computes, then measure. The exhaustive comparison may be stopped with Ctrl-C and goes on from "
    "there. The last line needs a GPU and a CUDA build of torch, and adds its section to the record."
)
_COMMANDS = (
    "make bench        # a few minutes; installs the other tools, and builds one of them\n"
    "make exhaustive   # all 2^32 inputs, seven times\n"
    ".venv/bin/python benchmarks/quantize.py --device cuda"
)
_BUSY = 0.5


def _read(path: Path, kind: type[AnyRecord], problems: list[Md]) -> AnyRecord | None:
    try:
        return read_record(path, kind)
    except RecordError as error:
        problems.append(md("{reason}", reason=str(error)))
        return None


def _pending(text: str, command: str) -> Note:
    return Note("question", "Pending", (Paragraph(text), CodeBlock(command, "bash")))


def _find(record: QuantizeRecord, name: str, form: str) -> Timing | None:
    """Our row of that name and form that has a figure, on the large tensor and in E4M3."""
    rows = (row for row in record.timings if row.group == "ours" and not row.small and row.ratio is not None)
    return next((row for row in rows if (row.name, row.form) == (name, form)), None)


def _times(value: float | None) -> str:
    """A ratio with three digits."""
    return "–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _answer(speed: QuantizeRecord | None, exact: ExhaustiveRecord | None) -> Md:
    parts: list[Md] = []
    rows = {form: _find(speed, "plain", form) for form in ("compiled", "eager")} if speed else {}
    if speed is not None and any(rows.values()):
        told = words.names([f"{_times(row.ratio)} {_FORMS[form]}" for form, row in rows.items() if row])
        parts.append(md("**The time to round a tensor onto an 8-bit grid, in copies of it: {times}.**", times=told))
        peers = [row for row in speed.timings if row.group == "peer" and row.ratio is not None]
        if peers:
            best, worst = min(peers, key=_ratio), max(peers, key=_ratio)
            parts.append(
                md(
                    "Other tools, in {count} ways beside it: {low} ({first}) to {high} ({last}).",
                    count=len(peers),
                    low=_times(best.ratio),
                    first=_peer(best),
                    high=_times(worst.ratio),
                    last=_peer(worst),
                )
            )
    else:
        parts.append(Md("**What rounding a tensor costs: pending.**"))
    whole = [sweep for sweep in exact.sweeps if sweep.inputs == ALL_INPUTS] if exact else []
    if whole:
        wrong = sum(sweep.mismatches for sweep in whole)
        parts.append(
            md(
                "Compared bit for bit on all {inputs} float32 inputs, {cases} times over, its results have {wrong} "
                "mismatches.",
                inputs=f"{ALL_INPUTS:,}",
                cases=len(whole),
                wrong=f"{wrong:,}",
            )
        )
    return join(" ", parts)


_FORMS = {"compiled": "when compiled", "eager": "in eager form"}


def _ratio(row: Timing) -> float:
    return row.ratio or 0.0


def _peer(row: Timing) -> str:
    return f"{row.name}, {row.format}"


def _warnings(speed: QuantizeRecord | None, exact: ExhaustiveRecord | None, problems: list[Md]) -> list[Block]:
    blocks: list[Block] = []
    if problems:
        title = f"{len(problems)} record{'s' if len(problems) > 1 else ''} left out"
        blocks.append(Note("warning", title, (Bullets(tuple(problems)),)))
    notes: list[Text] = []
    if speed is not None:
        if speed.quick:
            notes.append("The speeds are from a quick trial of the machinery, and mean little.")
        if speed.load is not None and speed.load > _BUSY:
            notes.append(
                f"The machine was not idle: a load average of {speed.load:g} on {speed.cores} cores when the "
                f"measurement began. Ratios bear that better than times; the spreads tell how well."
            )
        if speed.kernel != kernel_fingerprint():
            notes.append("The kernel's source has changed since its speed was measured.")
    if exact is not None and any(sweep.kernel != kernel_fingerprint() for sweep in exact.sweeps):
        notes.append("The kernel's source has changed since it was compared on all inputs.")
    if notes:
        blocks.append(Note("info", "Before you rely on this", (Bullets(tuple(notes)),)))
    return blocks


def _chart_blocks(record: QuantizeRecord) -> list[Block]:
    shown = [
        row
        for row in record.timings
        if row.ratio is not None
        and row.unit == "copy"
        and not row.small
        and (row.group == "peer" or (row.name in ("plain", "stochastic") and row.format == "E4M3"))
    ]
    if not shown:
        return []
    shown.sort(key=_ratio)
    labels = [
        _peer(row) if row.group == "peer" else f"AltGrad {'stochastic ' if row.name != 'plain' else ''}{row.form}"
        for row in shown
    ]
    data = pd.DataFrame(
        {
            "what": labels,
            "group": [row.group for row in shown],
            "copies": [row.ratio for row in shown],
            "low": [row.low for row in shown],
            "high": [row.high for row in shown],
        }
    )

    def draw(axes: Axes) -> None:
        start = 0.5
        for at, row in enumerate(shown):
            colour = PALETTE[0] if row.group == "ours" else PALETTE[7]
            axes.barh(at, _ratio(row) - start, left=start, height=0.62, color=colour)
            axes.text(_ratio(row) * 1.08, at, _times(row.ratio), va="center", color=FOREGROUND)
        axes.set_xscale("log")
        axes.set_xlim(start, 2 * max(map(_ratio, shown)))
        axes.set_yticks(range(len(shown)), labels)
        axes.tick_params(axis="y", labelcolor=FOREGROUND)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.axvline(1, color=FOREGROUND, linewidth=1)
        axes.set_xlabel("time in copies of the tensor (log scale); the line is one copy")

    height, width = record.shape
    chart = Chart(
        "cost",
        f"Time to round {height:,} x {width:,} float32 numbers, in copies of the same tensor",
        "Horizontal bars on a logarithmic scale, shortest first, AltGrad's forms in a colour of their own. "
        + "; ".join(f"{label}: {_times(row.ratio)}" for label, row in zip(labels, shown, strict=True))
        + ".",
        data,
        draw,
        height=0.9 + 0.27 * len(shown),
    )
    return [ChartBlock(chart)]


def _goals(record: QuantizeRecord) -> list[Block]:
    rows = [row for row in record.timings if row.goal is not None]
    if not rows:
        return []
    met, measured = sum(row.met is True for row in rows), sum(row.met is not None for row in rows)
    table = Table(
        ("What", *col.right("Goal, at most", "Measured"), Column("Result"), Column("Why", sortable=False)),
        tuple(
            (
                _what(row, record),
                f"{row.goal:g} x {_unit(row)}",
                _times(row.ratio),
                "pending" if row.met is None else "met" if row.met else "missed",
                md("{why}", why=_why(row)),  # whole, however long
            )
            for row in rows
        ),
        "Goals, as multiples of what they are measured against",
        id="goals",
        data=_frame(rows),
    )
    text = f"{met} of the {measured} goals that were measured are met. They were set before this measurement."
    return [Heading("Goals"), Paragraph(text), table]


def _what(row: Timing, record: QuantizeRecord) -> str:
    size = f", {record.small_shape[0]} x {record.small_shape[1]}" if row.small else ""
    return f"{row.name}, {row.format}, {row.form}{size}"


def _unit(row: Timing) -> str:
    return {"copy": "one copy", "two copies": "two copies", "torch cast": "torch's cast"}[row.unit]


def _why(row: Timing) -> str:
    if row.error:
        return row.error
    if row.met is not False or row.ratio is None or row.goal is None:
        return ""
    return f"{row.ratio / row.goal - 1:.0%} above the goal; repeats from {_spread(row)}. {row.remark}".strip()


def _frame(rows: Sequence[Timing]) -> pd.DataFrame:
    return pd.DataFrame([row.model_dump() for row in rows])


def _spread(row: Timing) -> str:
    return "–" if row.low is None or row.high is None else f"{_times(row.low)} to {_times(row.high)}"


def _speed_blocks(record: QuantizeRecord) -> list[Block]:
    large = [row for row in record.timings if row.group == "ours" and not row.small]
    small = [row for row in record.timings if row.small]
    peers = [row for row in record.timings if row.group == "peer"]
    height, width = record.shape
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    conditions = (
        f"One process, {record.threads} thread{'s' if record.threads > 1 else ''} of a machine with {record.cores} "
        f"cores, normally distributed float32 numbers, {height:,} x {width:,} of them, results written into memory "
        f"that is there. A copy of that tensor took {1e3 * record.copy_seconds:.3g} ms. Each figure is the best of "
        f"several calls over the best of the copies between them; the spread is that of five such figures. Measured "
        f"on {record.date:%Y-%m-%d} with {packages}."
    )
    columns: tuple[Column | str, ...] = (
        "What",
        "Format",
        "Form",
        *col.right("Ratio", "Spread"),
        Column("Measured against"),
    )
    blocks: list[Block] = [
        Heading("The kernel's forms"),
        Paragraph(conditions),
        Table(
            columns,
            tuple(
                (row.name, row.format, row.form, _times(row.ratio), _spread(row), row.error or _unit(row))
                for row in large
            ),
            "AltGrad's kernel. Counted: with overflow, underflow and the spacing of the grid; against two copies, "
            "because it writes two tensors",
            data=_frame(large),
            id="kernel",
        ),
        Heading("Other tools"),
        Paragraph(
            "The same tensor through what others offer, each in the fastest form it has for float32 tensors. Results "
            "that differ are counted against AltGrad's; where formats mean different things, a few telling inputs say "
            "how."
        ),
        Table(
            ("Tool", "Version", "Format", *col.right("Copies", "Spread", "Results that differ"), "Another meaning"),
            tuple(
                (
                    row.name,
                    row.version or "not installed",
                    row.format,
                    _times(row.ratio),
                    _spread(row),
                    row.differing,
                    row.error or row.remark,
                )
                for row in peers
            ),
            "Other tools, in copies of the tensor",
            data=_frame(peers),
            id="peers",
        ),
    ]
    if small:
        blocks += [
            Heading("Small tensors"),
            Table(
                ("Format", "Form", *col.right("Time (µs)", "Ratio to torch's cast", "Spread")),
                tuple(
                    (
                        row.format,
                        row.form,
                        "–" if row.seconds is None else f"{1e6 * row.seconds:.3g}",
                        row.error or _times(row.ratio),
                        _spread(row),
                    )
                    for row in small
                ),
                f"A tensor of {record.small_shape[0]} x {record.small_shape[1]} against torch's cast to 8 bits and "
                "back into memory that is there",
                data=_frame(small),
                id="small",
            ),
        ]
    return [*blocks, *_scratch_blocks(record), *_accelerator_blocks(record.accelerator)]


def _scratch_blocks(record: QuantizeRecord) -> list[Block]:
    if not record.scratch:
        return []
    rows = tuple(
        (
            one.name,
            f"{one.tensor_bytes / 2**20:.1f}",
            "–" if one.scratch_bytes is None else f"{one.scratch_bytes / 2**20:.1f}",
            f"{one.goal_bytes / 2**20:.1f}",
            one.error or ("–" if one.met is None else "met" if one.met else "missed"),
        )
        for one in record.scratch
    )
    columns: tuple[Column | str, ...] = (
        "Eager form",
        *col.right("Tensor (MiB)", "Scratch (MiB)", "Goal, at most (MiB)"),
        "Result",
    )
    caption = (
        "Memory beside input and output: by how much a fresh process's peak grows, the code that it loads included"
    )
    return [Heading("Memory"), Table(columns, rows, caption)]


def _accelerator_blocks(found: Accelerator | None) -> list[Block]:
    if found is None:
        command = ".venv/bin/python benchmarks/quantize.py --device cuda"
        return [Heading("On a GPU"), _pending("Not measured yet: no GPU was at hand.", command)]
    share = found.quantize_bandwidth / found.copy_bandwidth
    text = (
        f"On {found.device}, the compiled kernel moves {found.quantize_bandwidth / 1e9:,.0f} GB a second, {share:.0%} "
        f"of what a copy there moves ({found.copy_bandwidth / 1e9:,.0f} GB), on {found.elements:,} numbers. Of "
        f"{found.compared:,} results compared with the processor's, {found.differing:,} differ in a bit. Measured on "
        f"{found.date:%Y-%m-%d} with torch {found.torch}."
    )
    return [Heading("On a GPU"), Paragraph(text)]


def _exact_blocks(record: ExhaustiveRecord | None) -> list[Block]:
    heading = Heading("Every float32 input", anchor="exhaustive")
    if record is None or not record.sweeps:
        return [heading, _pending("No comparison on all inputs is recorded.", "make exhaustive")]
    text = (
        f"There are {ALL_INPUTS:,} float32 numbers, few enough to try them all. Every result was compared bit for bit "
        "with that of an independent implementation, signs of zero included; all NaNs count as one. Rounding is to the "
        "nearest value, ties to even."
    )
    rows = tuple(
        (
            _label(sweep.format),
            sweep.overflow,
            sweep.oracle,
            f"{sweep.inputs:,}",
            f"{sweep.mismatches:,}",
            sweep.form,
            f"{sweep.date:%Y-%m-%d}",
            ", ".join(f"{name} {version}" for name, version in sweep.versions.items()),
        )
        for sweep in record.sweeps
    )
    columns: tuple[Column | str, ...] = (
        "Format",
        "Beyond the maximum",
        "Compared with",
        *col.right("Inputs", "Mismatches"),
        "Form",
        "Date",
        "Versions",
    )
    data = pd.DataFrame([sweep.model_dump(exclude={"versions", "first_mismatches"}) for sweep in record.sweeps])
    blocks: list[Block] = [
        heading,
        Paragraph(text),
        Table(columns, rows, "The kernel against independent implementations", data=data, id="sweeps"),
    ]
    lines = [f"{sweep.case}: {line}" for sweep in record.sweeps for line in sweep.first_mismatches]
    if lines:
        blocks.append(Note("warning", "The first mismatches", (CodeBlock("\n".join(lines)),)))
    return blocks


def _label(name: str) -> str:
    """A format's label; a name that is none as it is."""
    try:
        return get_format(name).label
    except ValueError:
        return name


def _fingerprints(folder: Path) -> str:
    """Every record's name and the beginning of its sha256."""
    files = sorted(folder.glob("*.json"))
    return (
        ", ".join(f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]})" for path in files)
        or "none"
    )
