"""What quantized training costs: the record of `benchmarks/training.py` and the page that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from altgrad.pages import Block, Heading, Md, Page, Paragraph
from altgrad.reports import columns as col
from altgrad.reports import measured
from altgrad.reports.measured import RECORDED, RESULT, Measured, Positive, Record, Some, found


class Arm(Record):
    """One arm's step against its baseline's, measured in turns in one process."""

    name: str
    baseline: str  # the arm that it is compared with
    ratio: Positive  # median time over the baseline's; low, high: the quartiles of the turns' ratios
    low: Positive
    high: Positive
    milliseconds: Positive  # median time of a step
    goal: float | None = None  # the largest ratio that was aimed at
    reason: str = ""  # of a missed goal, or what to know beside the figure


class Memory(Record):
    """Peak memory of a process that trains an arm for three steps, beyond what it held before; MiB."""

    name: str
    mebibytes: Positive
    ratio: Positive
    goal: float | None = None


class Share(Record):
    """The self time of one operator in one eager step with everything quantized, in percent."""

    operator: str
    percent: float


class TrainingRecord(Measured):
    """benchmarks/recorded/training.json; training-cuda.json for a GPU."""

    benchmark: Literal["training"] = "training"
    code: str
    device: str
    sizes: dict[str, int]
    turns: Some
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
_GOAL = (
    col.filled("Goal", "{goal:g}", blank=""),
    col.of("Result", lambda row: RESULT[None if row["goal"] is None else row["ratio"] <= row["goal"]]),
)
_TIME = (
    col.text("Arm", "name", NAMES),
    col.text("Against", "baseline", NAMES),
    col.filled("Ratio", "{ratio:.2f}"),
    col.filled("Spread", "{low:.2f} to {high:.2f}"),
    col.filled("ms a step", "{milliseconds:.3g}"),
    *_GOAL,
    col.filled("Remark", "{reason}", right=False),
)
_MEMORY = (
    col.text("Arm", "name", NAMES),
    col.filled("Peak, MiB", "{mebibytes:.0f}"),
    col.filled("Ratio to fp32", "{ratio:.2f}"),
    *_GOAL,
)
_SHARES = (col.text("Operator", "operator"), col.filled("Percent", "{percent:.1f}"))


def training_page(folder: Path = RECORDED) -> Page:
    """The page, from the records in `folder`; what is not recorded is pending, a damaged record is named."""
    own, no_own = found(folder / "training.json", TrainingRecord)
    gpu, no_gpu = found(folder / "training-cuda.json", TrainingRecord)
    blocks = [
        *([Paragraph(_answer(own))] if own else []),
        Heading("On a processor"),
        *(_blocks(own, "cpu", "processor") if own else no_own),
        Heading("On a GPU"),
        *(_blocks(gpu, "gpu", "wall") if gpu else no_gpu),
    ]
    about = "Time and memory of training with quantized operands, against the plain fp32 loop."
    return measured.page("benchmarks/training", "What quantized training costs", about, blocks)


def _answer(record: TrainingRecord) -> Md:
    ratio = {arm.name: arm.ratio for arm in record.arms}
    if not {"wag", "wag-compiled"} <= set(ratio):
        return Md("**What quantized training costs: pending.**")
    answer = (
        f"**With weights, activations and gradients in E4M3 a training step takes {ratio['wag']:.2f} times the plain "
        f"fp32 step, {ratio['wag-compiled']:.2f} times where both are compiled.**"
    )
    if {"telemetry", "telemetry-compiled"} <= set(ratio):
        eager, compiled = (100 * (ratio[name] - 1) for name in ("telemetry", "telemetry-compiled"))
        answer += (
            f" Telemetry with a look at every tenth step adds {eager:.1f}% to the quantized step, {compiled:.1f}% to "
            "the compiled one, whose looks are taken eagerly."
        )
    return Md(answer)


def _blocks(record: TrainingRecord, key: str, clock: str) -> list[Block]:
    sizes = ", ".join(f"{name} {value}" for name, value in record.sizes.items())
    conditions = (
        f"A GPT ({sizes}) on {record.device}, one thread, in {clock} time; {record.turns} turns, in each of which "
        "every arm takes one step. The ratio is that of the medians, the spread the middle half of the turns."
        f"{record.busy} {record.measured}."
    )
    tables = (
        (record.arms, _TIME, "time", "Time of a training step"),
        (record.memory, _MEMORY, "memory", "Peak memory of three steps, beyond what the process held before"),
        (
            record.shares,
            _SHARES,
            "shares",
            "Where the time of an eager step goes, everything quantized: self time of the ten largest operators",
        ),
    )
    shown = [measured.table(rows, columns, caption, f"{key}-{name}") for rows, columns, name, caption in tables if rows]
    return [Paragraph(conditions), *shown]
