"""Recorded ladders with a known law, packed from made-up runs: what tests of the fit and of its page are fed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from records import write_run

from altgrad.runs import RunRecord, pack_part, read_run
from altgrad.runs.schema import arm_id, run_id
from altgrad.studies import LADDER, LADDER_HELD_OUT, LADDER_LARGE, Arm, rung

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import interval_coverage
from interval_coverage import made_up

__all__ = ["interval_coverage", "made_up", "write_ladder"]

DATA = {"name": "licenses-all", "sha256": "cd" * 32}
SIZES = {size.name: size for size in (*LADDER, *LADDER_HELD_OUT, *LADDER_LARGE)}
RATE = 0.016


def write_ladder(folder: Path, runs: pd.DataFrame, failed: Mapping[tuple[str, str, int, int], str] = {}) -> Path:
    """A folder of packed studies with the runs of `made_up`; `failed` names cells and seeds that ended otherwise."""
    first = rung("NVFP4", LADDER[0], 400, RATE).config(0, "local")
    model = read_run(write_run(folder / "model", first, 2.0, data=DATA, final=2.0, looks=[]))
    history, layers = model.history.tail(1), model.layers
    found: dict[str, list[RunRecord]] = {}
    arms: dict[tuple[str, str, int], Arm] = {}
    for row in runs.to_dict("records"):
        cell = row["form"], row["size"], row["steps"]
        if cell not in arms:
            arms[cell] = rung(row["form"], SIZES[row["size"]], row["steps"], RATE)
        config = arms[cell].config(row["seed"], row["study"])
        own: dict[str, Any] = {
            "id": run_id(config, DATA),
            "arm": arm_id(config, DATA),
            "config": config.model_dump(mode="json"),
        }
        own["status"] = failed.get((*cell, row["seed"]), "finished")
        last = history.assign(step=row["steps"], val_loss=row["loss"], final_val_loss=row["loss"])
        tables = {"history": last, "layers": layers}
        record = RunRecord(model.run | own, config, own["arm"], tables.__getitem__)
        found.setdefault(row["study"], []).append(record)
    for study, records in found.items():
        pack_part(records, folder / "packed" / study)
    return folder / "packed"
