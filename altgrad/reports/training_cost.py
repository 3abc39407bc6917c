"""What quantized training costs: the record of `benchmarks/training.py` and the page that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import AwareDatetime, Field

import altgrad
from altgrad.pages import Block, Bullets, CodeBlock, Column, Heading, Md, Note, Page, Paragraph, Provenance, Table, md
from altgrad.reports import columns as col
from altgrad.reports.benchmarks import RECORDED, Record, read_record
from altgrad.runs.schema import RecordError


class Arm(Record):
    """One arm's step against its baseline's, measured in turns in one process.

    Attributes:
        name: of the arm; `baseline` the arm it is compared with.
        ratio: median time over the baseline's median time; low, high: the quartiles of the turns' ratios.
        milliseconds: median time of a step.
        goal: the largest ratio that was aimed at; None without a goal.
        reason: of a missed goal, or what to know beside the figure.
    """

    name: str
    baseline: str
    ratio: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    milliseconds: float = Field(gt=0)
    goal: float | None = None
    reason: str = ""


class Memory(Record):
    """Peak memory of a process that trains an arm for three steps, beyond what it held before; MiB."""

    name: str
    mebibytes: float = Field(gt=0)
    ratio: float = Field(gt=0)
    goal: float | None = None


class Share(Record):
    """The self time of one operator in one eager step with everything quantized, in percent."""

    operator: str
    percent: float


class TrainingRecord(Record):
    """benchmarks/recorded/training.json; training-cuda.json for a GPU."""

    benchmark: Literal["training"] = "training"
    date: AwareDatetime
    altgrad: str
    code: str
    device: str
    cores: int = Field(gt=0)
    load: float | None = None
    versions: dict[str, str]
    sizes: dict[str, int]
    turns: int = Field(gt=0)
    arms: tuple[Arm, ...]
    memory: tuple[Memory, ...] = ()
    shares: tuple[Share, ...] = ()


NAMES = {
    "w": "Weights in E4M3",
    "wag": "Weights, activations and gradients in E4M3",
    "wag-stochastic-gradients": "The same, gradients rounded stochastically",
    "wag-mx": "Weights, activations and gradients in MXFP8 (E4M3)",
    "telemetry-off": "The same, telemetry off",
    "look": "The same, with a look",
    "look-codes": "The same, with a look that counts codes",
    "watch": "The watch over weights and gradients alone",
    "telemetry": "The step with its share of telemetry: the watch, and a look at every tenth step",
    "telemetry-compiled": "The compiled step with its share of telemetry, looks being eager",
    "wag-compiled": "Weights, activations and gradients in E4M3, the model compiled",
    "w-compiled": "Weights in E4M3, the model compiled",
    "fp32": "the fp32 loop",
    "fp32-compiled": "the compiled fp32 loop",
    "bf16": "the bf16 loop",
    "bf16-compiled": "the compiled bf16 loop",
    "native-compiled": "Native FP8, the model compiled",
    "native": "Native FP8 (E4M3, gradients in E5M2)",
    "manifold-step": "ManifoldAdamW's step alone",
    "adamw-step": "torch's AdamW step alone",
}


def training_page(folder: Path = RECORDED) -> Page:
    """The page, from the records in `folder`; what is not recorded is pending, a damaged record is named."""
    blocks: list[Block] = []
    for name, title, command in (
        ("training.json", "On a processor", "make bench-training"),
        ("training-cuda.json", "On a GPU", ".venv/bin/python benchmarks/training.py --device cuda"),
    ):
        blocks.append(Heading(title))
        try:
            record = read_record(folder / name, TrainingRecord)
        except RecordError as error:
            blocks.append(Note("warning", "A record was left out", (Bullets((md("{reason}", reason=str(error)),)),)))
            continue
        if record is None:
            blocks.append(
                Note("question", "Pending", (Paragraph("No measurement is recorded."), CodeBlock(command, "bash")))
            )
        else:
            blocks += _record_blocks(record, "gpu" if "cuda" in name else "cpu")
            if not name.startswith("training-"):
                blocks.insert(0, Paragraph(_answer(record)))
    return Page(
        "benchmarks/training",
        "What quantized training costs",
        tuple(blocks),
        description="Time and memory of training with quantized operands, against the plain fp32 loop.",
        provenance=Provenance(
            (("Code", f"altgrad {altgrad.__version__}"), ("Built", "from local records; no network was used"))
        ),
    )


def _answer(record: TrainingRecord) -> Md:
    found = {arm.name: arm.ratio for arm in record.arms}
    if "wag" not in found or "wag-compiled" not in found:
        return Md("**What quantized training costs: pending.**")
    answer = md(
        "**With weights, activations and gradients in E4M3 a training step takes {eager} times the plain fp32 step, "
        "{compiled} times where both are compiled.**",
        eager=f"{found['wag']:.2f}",
        compiled=f"{found['wag-compiled']:.2f}",
    )
    if "telemetry" not in found or "telemetry-compiled" not in found:
        return answer
    return md(
        "{answer} Telemetry with a look at every tenth step adds {eager}% to the quantized step, {compiled}% to the "
        "compiled one, whose looks are taken eagerly.",
        answer=answer,
        eager=f"{100 * (found['telemetry'] - 1):.1f}",
        compiled=f"{100 * (found['telemetry-compiled'] - 1):.1f}",
    )


def _record_blocks(record: TrainingRecord, key: str) -> list[Block]:
    sizes = ", ".join(f"{name} {value}" for name, value in record.sizes.items())
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    busy = f" Load average when it began: {record.load:g} on {record.cores} cores." if record.load is not None else ""
    conditions = (
        f"A GPT ({sizes}) on {record.device}, one thread, in {'processor' if key == 'cpu' else 'wall'} time; "
        f"{record.turns} turns, in each of which every arm takes one step. "
        f"The ratio is that of the medians, the spread the middle half of the turns.{busy} Measured on "
        f"{record.date:%Y-%m-%d} with {packages}."
    )
    rows = tuple(
        (
            NAMES.get(arm.name, arm.name),
            NAMES.get(arm.baseline, arm.baseline),
            f"{arm.ratio:.2f}",
            f"{arm.low:.2f} to {arm.high:.2f}",
            f"{arm.milliseconds:.3g}",
            "" if arm.goal is None else f"{arm.goal:g}",
            "" if arm.goal is None else "met" if arm.ratio <= arm.goal else "missed",
            arm.reason,
        )
        for arm in record.arms
    )
    columns: tuple[Column | str, ...] = (
        "Arm",
        "Against",
        *col.right("Ratio", "Spread", "ms a step", "Goal"),
        "Result",
        "Remark",
    )
    blocks: list[Block] = [
        Paragraph(conditions),
        Table(columns, rows, "Time of a training step", data=_frame(record.arms), id=f"{key}-time"),
    ]
    if record.memory:
        memory = tuple(
            (
                NAMES.get(row.name, row.name),
                f"{row.mebibytes:.0f}",
                f"{row.ratio:.2f}",
                "" if row.goal is None else f"{row.goal:g}",
                "" if row.goal is None else "met" if row.ratio <= row.goal else "missed",
            )
            for row in record.memory
        )
        blocks.append(
            Table(
                ("Arm", *col.right("Peak, MiB", "Ratio to fp32", "Goal"), "Result"),
                memory,
                "Peak memory of three steps, beyond what the process held before",
                data=_frame(record.memory),
                id=f"{key}-memory",
            )
        )
    if record.shares:
        blocks.append(
            Table(
                ("Operator", *col.right("Percent")),
                tuple((share.operator, f"{share.percent:.1f}") for share in record.shares),
                "Where the time of an eager step goes, everything quantized: self time of the ten largest operators",
                data=_frame(record.shares),
                id=f"{key}-shares",
            )
        )
    return blocks


def _frame(rows: tuple[Record, ...]) -> pd.DataFrame:
    return pd.DataFrame([row.model_dump() for row in rows])
