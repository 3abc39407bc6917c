"""Small run records with chosen losses, written by the real writer: what tests of readers and reports are fed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from altgrad.config import ExperimentConfig
from altgrad.runs import Failure, RunWriter
from altgrad.runs.tables import DIGESTS

Row = tuple[int, str, str, str, str, float]
"""step, layer, layer_type, operand, statistic, value."""
LAYERS = (
    ("embedding", "embedding"),
    ("blocks.0.attention.qkv", "attention"),
    ("blocks.0.mlp.up", "mlp"),
    ("head", "head"),
)
DATA = {"name": "licenses", "sha256": "ab" * 32}


def config(
    fmt: str = "fp32", *, seed: int = 0, lr: float = 3e-3, precondition: str | None = None, **more: Any
) -> ExperimentConfig:
    """W+A+G in one format, AdamW or ManifoldAdamW."""
    optimizer: dict[str, Any] = {"learning_rate": lr}
    if precondition:
        optimizer |= {"step_rule": "manifold", "precondition": precondition}
    return ExperimentConfig.model_validate(
        {
            "quantize": {"weight": fmt, "activation": fmt, "grad_output": fmt},
            "optimizer": optimizer,
            "seed": seed,
            "max_steps": 20,
            **more,
        }
    )


def write_run(
    root: Path,
    cfg: ExperimentConfig,
    loss: float = 2.0,
    *,
    status: str = "finished",
    data: dict[str, str] = DATA,
    sqnr: float = 30.0,
    underflow: float = 0.0,
    flips: float = 30.0,
    url: str | None = None,
    looks: Sequence[Row] | None = None,
    events: Sequence[dict[str, Any]] = (),
    failure: Failure | None = None,
    final: float | None = None,
    summary: dict[str, Any] | None = None,
) -> Path:
    """Write one run that ends at validation loss `loss`; other statuses end halfway.

    `final` is the last evaluation's, where that reads more text than the others.

    `looks` is the per-layer table in place of one layer's figures at the end; `events` have kind and step.
    """
    writer = RunWriter.create(
        root, cfg, data_fingerprint=data, environment={"python": "3.11", "torch": "2.13.0", "device": "cpu"}
    )
    last = 20 if status == "finished" else 10
    for step in range(last + 1):
        row = {
            "tokens": 512.0 * step,
            "seconds": 0.01 * step,
            "loss": loss + (20 - step) / 20,
            "lr": 1e-3,
            "grad_norm": 1.0,
        }
        if step % 10 == 0:
            row["val_loss"] = loss + (20 - step) / 20
        if final is not None and step == 20:
            row["final_val_loss"] = final
        if status == "failed" and step == last:
            row["loss"] = math.nan
            row.pop("val_loss")
        writer.log(step, **row)
    rows = []
    if cfg.quantize.operands:
        for operand in ("weight", "activation", "grad_output"):
            for name, value in (("overflow", 0.0), ("underflow", underflow), ("sqnr_db", sqnr), ("amax", 1.0)):
                rows.append((last, "blocks.0.mlp.up", "mlp", operand, name, value))
        rows += [
            (last, "blocks.0.mlp.up", "mlp", "update", "flips", flips),
            (last, "blocks.0.mlp.up", "mlp", "update", "updates", 100.0),
        ]
    writer.log_layers(rows if looks is None else looks)
    for event in events:
        writer.event(**event)
    if url:
        writer.set_wandb_url(url)
    if status == "finished":
        writer.finish({"final_val_loss": loss} | (summary or {}))
    elif status == "failed":
        writer.fail(failure or Failure(("nan_loss",), 10, "blocks.0.mlp.up.weight", "forward", "loss is NaN"))
    elif status == "interrupted":
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    elif status == "crashed":  # the process is gone: the lock is free, run.json still says running
        writer._release()
    elif status != "running":
        raise ValueError(status)
    if status == "running":
        _HELD.append(writer)
    return writer.path


_HELD: list[RunWriter] = []


def without_proofs(folder: Path) -> Path:
    """A run's folder or a packed study as earlier versions wrote it: nothing proves its tables."""
    if (folder / DIGESTS).exists():
        (folder / DIGESTS).unlink()
    else:
        run = json.loads((folder / "run.json").read_text("utf-8"))
        run.pop("tables", None)
        (folder / "run.json").write_text(json.dumps(run), "utf-8")
    return folder


def write_matrix(root: Path, seeds: int = 5) -> None:
    """fp32 and four formats with known gaps, and both preconditions on E4M3."""
    for seed in range(seeds):
        base = 2.0 + 0.01 * seed
        noise = 0.001 * (seed % 3)
        write_run(root, config("fp32", seed=seed), base)
        for fmt, gap, sqnr in (("e4m3", 0.01, 31.0), ("e3m4", 0.0102, 36.0), ("e5m2", 0.03, 25.0), ("e7m0", 0.2, 15.0)):
            write_run(root, config(fmt, seed=seed), base + gap + noise * (1 if fmt != "e3m4" else -1), sqnr=sqnr)
        write_run(root, config("e4m3", seed=seed, lr=0.5, precondition="update"), base + 0.06 - 0.5 * noise, flips=60)
        write_run(root, config("e4m3", seed=seed, precondition="gradient"), base + 0.009 - noise)


def full_look(step: int, *, number: int = 0, worse: float = 0.0, codes: dict[int, float] | None = None) -> list[Row]:
    """Every statistic that a look records, for four layers; `worse` is added to the head's underflow.

    Every fifth look (by `number`) counts codes; `codes` are the weights' histogram, code to count.
    """
    rows: list[Row] = []
    for depth, (layer, kind) in enumerate(LAYERS):

        def add(operand: str, layer: str = layer, kind: str = kind, **figures: float) -> None:
            rows.extend((step, layer, kind, operand, name, value) for name, value in figures.items())

        for operand in ("weight",) if kind == "embedding" else ("weight", "activation", "grad_output"):
            underflow = 0.02 * depth + (worse if kind == "head" else 0.0)
            add(operand, amax=1.0, scale=0.5, norm_l2=3.0, nonfinite=0.0, overflow=0.0, underflow=underflow, dead=0.125)
            add(operand, sqnr_db=20.0 + 5.0 * depth)
            if number % 5 == 0:
                add(operand, codes_used=0.5, code_entropy=6.25)
        if number % 5 == 0:
            for code, count in (codes or {0x00: 10.0, 0x38: 30.0, 0xB8: 24.0}).items():
                add("weight", **{f"code_{code:02x}": count})
        rank = 40.0 - 0.5 * number * depth
        add("weight", stable_rank=8.5, effective_rank=rank, spectral_norm=2.5, code_position=0.7, grid_distance=0.25)
        add("gradient", norm_l2=0.1 * 2**depth, norm_inf=0.01, zero=0.25, nonfinite=0.0, stiffness_correlation=-0.03)
        add("gradient", shadow_cosine=0.9876, shadow_snr_db=12.5)
        add("update", norm_l2=0.2, updates=100.0, flips=30.0 - depth, stall_ratio=0.7 + 0.01 * depth)
        add("update", zero_update=0.0625, ulps_rms=1.5)
        edges = ("0", "2^-6", "2^-4", "2^-2", "2^0", "2^2", "2^4", "inf")
        add("update", **{f"ulps_{edge}": 0.125 for edge in edges})
    return rows
