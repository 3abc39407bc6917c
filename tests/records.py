"""Small run records with chosen losses, written by the real writer: what tests of readers and reports are fed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from altgrad.config import ExperimentConfig
from altgrad.runs import Failure, RunWriter

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
) -> Path:
    """Write one run that ends at validation loss `loss`; other statuses end halfway."""
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
    writer.log_layers(rows)
    if url:
        writer.set_wandb_url(url)
    if status == "finished":
        writer.finish({"final_val_loss": loss})
    elif status == "failed":
        failure = Failure(("nan_loss",), 10, "blocks.0.mlp.up.weight", "forward", "loss is NaN")
        writer.fail(failure)
    elif status == "interrupted":
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    elif status == "crashed":  # the process is gone: the lock is free, run.json still says running
        writer._history.close()
        writer._layers.close()
        writer._lock.close()
    elif status != "running":
        raise ValueError(status)
    if status == "running":
        _HELD.append(writer)
    return writer.path


_HELD: list[RunWriter] = []


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
