"""What quantized training costs: the record of `benchmarks/training.py` and the page that is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from altgrad.imports import code_fingerprint
from altgrad.reports import columns as col
from altgrad.reports import diffusion_cost, measured
from altgrad.reports.measured import RECORDED, RESULT, Measured, Positive, Record, Some, found
from altgrad.reports.run_costs import FIGURES, ProcessesRecord
from altgrad.site import Block, Page


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
    "telemetry": "The step with its share of telemetry",
    "telemetry-compiled": "The compiled step with its share of telemetry",
    "wag-compiled": "Weights, activations and gradients in E4M3, compiled",
    "w-compiled": "Weights in E4M3, compiled",
    "llama-wag": "Llama, everything in E4M3",
    "llama-wag-compiled": "Llama, everything in E4M3, compiled",
    "llama-fp32": "Llama's fp32 loop",
    "llama-fp32-compiled": "Llama's compiled fp32 loop",
    "coverage": "With the coverage hooks once more",
    "fp32": "the fp32 loop",
    "fp32-compiled": "the compiled fp32 loop",
    "bf16": "the bf16 loop",
    "bf16-compiled": "the compiled bf16 loop",
    "native-compiled": "Native FP8, compiled",
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
    roundings, no_roundings = found(folder / diffusion_cost.NAME, diffusion_cost.DiffusionRecord)
    several, no_several = found(folder / "processes.json", ProcessesRecord)
    ratio = {arm.name: arm.ratio for arm in own.arms} if own else {}
    values = {
        "own": own,
        "no_own": no_own,
        "gpu": gpu,
        "no_gpu": no_gpu,
        "several": several,
        "no_several": no_several,
        "now": code_fingerprint("run"),
        "ratio": ratio,
        "roundings": roundings,
        "no_roundings": no_roundings,
        "costs": diffusion_cost.cost_table(roundings),
        "within": diffusion_cost.within(roundings),
        "names": NAMES,
        "tables": _tables,
    }
    rows = several.figures if several else ()
    parts = {"several": measured.table(rows, FIGURES, "A step on several processes", "several")}
    return measured.page("benchmarks/training", values, parts)


def _tables(record: TrainingRecord, key: str) -> dict[str, list[Block]]:
    return {
        "time": measured.table(record.arms, _TIME, "Time of a training step", f"{key}-time"),
        "memory": measured.table(record.memory, _MEMORY, "Peak memory", f"{key}-memory"),
        "shares": measured.table(record.shares, _SHARES, "Self time by operator", f"{key}-shares"),
    }
