"""What the tensor view loads: the histograms that runs recorded, a file a run, and an index of them."""

from __future__ import annotations

import math
from typing import Any

from altgrad.analysis import tensors
from altgrad.analysis.labels import arm_labels
from altgrad.analysis.loader import ExperimentDataLoader, scale_label
from altgrad.config import OPERAND_NAMES, OPERANDS, ScaleRule
from altgrad.formats import FloatFormat, get_format
from altgrad.reports.columns import missing
from altgrad.reports.curves import compact
from altgrad.reports.scope import ONE_SCALE
from altgrad.runs import RunRecord
from altgrad.site import slug
from altgrad.text import visible


def tensor_files(loader: ExperimentDataLoader) -> dict[str, bytes]:
    """``tensors/index.json`` and a JSON for each arm's first run that has histograms; tuning runs are left out.

    First in the index, and what a reader sees first, are runs with histograms of the most operands.
    """
    index: dict[str, dict[str, Any]] = {}
    found: dict[str, bytes] = {}
    for row in loader.runs[loader.runs["role"] == "report"].itertuples():
        if row.arm in index:
            continue
        record = loader.records[row.run_id]
        if not (histograms := tensors.histograms(record.coded, _code_formats(record))):
            continue
        name = f"{slug(row.run_id)}.json"
        index[row.arm] = {
            "id": row.run_id,
            "arm": row.arm,
            "file": name,
            "kinds": sorted({histogram.kind for histogram in histograms.values()}),
            "operands": [each for each in OPERANDS if any(each == key[1] for key in histograms)],
            "seed": "" if missing(row.seed) else f", seed {row.seed}",
            "status": row.status,
        }
        found[f"tensors/{name}"] = compact({"id": row.run_id, "tensors": _tensors(record, histograms)})
    for arm, label in arm_labels(loader, index).items():
        index[arm]["label"] = f"{visible(label)}{index[arm].pop('seed')}"
    runs = sorted(index.values(), key=lambda entry: -len(entry["operands"]))
    content = {"runs": runs, "operands": OPERAND_NAMES, "policies": list(tensors.POLICIES)}
    return {"tensors/index.json": compact(content)} | found


def _tensors(record: RunRecord, histograms: dict[tuple[str, str, int], tensors.Histogram]) -> list[dict[str, Any]]:
    """The histograms in the order of the record, each with what the run itself recorded of the same rounding."""
    layers, recorded = record.layers, dict[tuple[str, str, int], dict[str, float]]()
    for row in layers[layers["statistic"].isin(["sqnr_db", "overflow", "underflow"])].itertuples():
        if math.isfinite(row.value):
            recorded.setdefault((row.layer, row.operand, int(row.step)), {})[str(row.statistic)] = float(row.value)
    return [
        {
            "layer": layer,
            "operand": operand,
            "step": step,
            "kind": histogram.kind,
            "counts": [list(each) for each in histogram.counts.items()],
            **{key: getattr(histogram, key) for key in ("zeros", "amax", "norm")},
            "format": str(getattr(record.config.quantize, operand)),
            **_scaled(record.config.scaling.rule(operand)),
            "recorded": recorded.get((layer, operand, step), {}),
        }
        for (layer, operand, step), histogram in histograms.items()
        if operand in OPERANDS  # of a second cast the view has no name
    ]


def _scaled(rule: ScaleRule) -> dict[str, str | None]:
    """By which scale the tensor was trained: as a policy of the view, where that has it, and in words."""
    exact = {True: "amax", False: "amax_exact"}
    policy = exact[rule.power_of_two] if rule.kind == "amax" and rule.granularity == "tensor" else None
    return {"policy": "none" if rule.kind == "none" else policy, "scaled": scale_label(rule) or ONE_SCALE}


def _code_formats(record: RunRecord) -> dict[str, FloatFormat]:
    """Formats of the operands that have one scale per tensor, where the run kept one format throughout."""
    config = record.config
    if config.stability.shift_to is not None:
        return {}
    found = {}
    for operand in OPERANDS:
        fmt, rule = get_format(getattr(config.quantize, operand)), config.scaling.rule(operand)
        if fmt.bits <= 8 and rule.kind not in ("mx", "mx_rceil", "nvfp4") and rule.granularity == "tensor":
            found[operand] = fmt
    return found
