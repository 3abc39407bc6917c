"""The curves of an arm: a light drawing, a table with the same figures, and the values that the zoomable chart reads.

`docs/javascripts/curves.js` draws them over the drawing. Without it the drawing and the table stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.reports import common
from altgrad.pages import MUTED, PALETTE, Axis, Block, Chart, ChartBlock, PageRef, Paragraph, Table, md
from altgrad.pages.content import Cell, Link
from altgrad.pages.sketch import Point, Sketch, plot_axes, spread

POINTS = 200
"""Most points a run has in the JSON of an arm; the JSON of a run has all that were recorded."""
TABLE_ROWS = 12
"""Most rows of the table beside the curves; the CSV has all."""


def curves(loader: ExperimentDataLoader, runs: pd.DataFrame, baseline: str | None) -> list[Block]:
    """The section; where no validation loss was recorded, a sentence that says so."""
    data = _by_step(loader, runs["run_id"], baseline)
    if data.empty:
        return [Paragraph("No run of this arm recorded a validation loss.")]
    foreign = bool(runs["foreign"].iloc[0])
    label = "val_loss" if foreign else "validation loss (nats a character)"
    shown = data[data["n"] > 0]
    first, last = shown.iloc[0], shown.iloc[-1]
    description = (
        f"Mean over the seeds by step, with the range from the lowest to the highest seed. At step {last['step']:.0f} "
        f"the {last['n']:.0f} runs of this arm have {common.number(last['mean'])} "
        f"({common.number(last['low'])} to {common.number(last['high'])}), at step {first['step']:.0f} they had "
        f"{common.number(first['mean'])}."
    )
    chart = Chart("loss", "Validation loss by step", description, data, sketch=_drawing(data, label), height=3.3)
    note = (
        "Line: mean over the seeds; band: lowest to highest seed. With JavaScript the chart zooms, and shows the "
        "training loss and each run by step, tokens or time; the table below has the figures in any case."
    )
    texts = [Paragraph(note)]
    if baseline is not None:
        texts.append(Paragraph(md("Baseline in the chart: {arm}.", arm=Link(baseline, PageRef(f"runs/{baseline}")))))
    return [ChartBlock(chart), *texts, _table(data, baseline is not None)]


def runs_value(loader: ExperimentDataLoader, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """All runs of an arm, column by column: {id, seed, status, role, step, tokens, seconds, loss, val_loss}."""
    found = []
    for run in runs.itertuples():
        history = loader.history(run.run_id)
        every = max(1, math.ceil(len(history) / POINTS))
        keep = np.arange(len(history)) % every == 0
        if "val_loss" in history:
            keep |= history["val_loss"].notna().to_numpy()
        names = [name for name in ("step", "tokens", "seconds", "loss", "val_loss") if name in history]
        columns = {name: plain(history[name][keep].tolist()) for name in names}
        found.append({"id": run.run_id, "seed": int(run.seed), "status": run.status, "role": run.role, **columns})
    return found


def as_json(value: Any) -> bytes:
    """Compact JSON in ASCII, with null for what JSON has no number for; equal values give equal bytes."""
    return (json.dumps(plain(value), separators=(",", ":"), sort_keys=True, allow_nan=False) + "\n").encode()


def plain(value: Any) -> Any:
    """`value` with floats of at most seven digits, NaN and infinities as None; deep."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _by_step(loader: ExperimentDataLoader, run_ids: Sequence[str], baseline: str | None) -> pd.DataFrame:
    """Columns step, mean, low, high, n of the arm, and the same with ``baseline_``: over the runs evaluated there."""

    def of(ids: Sequence[str]) -> pd.DataFrame:
        frames = [loader.history(run_id) for run_id in ids]
        frames = [frame.loc[frame["val_loss"].notna(), ["step", "val_loss"]] for frame in frames if "val_loss" in frame]
        if not frames:
            return pd.DataFrame(columns=["step", "mean", "low", "high", "n"])
        losses = common.finite_rows(pd.concat(frames, ignore_index=True), "val_loss").groupby("step")["val_loss"]
        return losses.agg(mean="mean", low="min", high="max", n="count").reset_index()

    own = of(list(run_ids))
    if own.empty:
        return own
    rows = loader.runs
    other = of(rows.loc[rows["arm"] == baseline, "run_id"].tolist()) if baseline else of([])
    merged = own.merge(other, on="step", how="outer", suffixes=("", "_of_baseline")).sort_values("step")
    renamed = merged.rename(
        columns=lambda name: f"baseline_{name.removesuffix('_of_baseline')}" if "_of_" in name else name
    )
    return renamed.fillna({"n": 0, "baseline_n": 0}).astype({"n": int, "baseline_n": int}).reset_index(drop=True)


def _drawing(data: pd.DataFrame, label: str) -> Any:
    """How the chart is drawn: the arm's band and line, the baseline's behind it, named at their right ends."""
    parts = [("baseline_", MUTED, "baseline"), ("", PALETTE[0], "this arm")]
    parts = [part for part in parts if data[f"{part[0]}n"].any()]
    edges = pd.concat([data[f"{prefix}{side}"] for prefix, *_ in parts for side in ("low", "high")]).dropna()
    pad = 0.04 * (edges.max() - edges.min()) or 0.5

    def draw(sketch: Sketch) -> None:
        x = Axis(float(data["step"].min()), float(data["step"].max()), 48, sketch.width - 78)
        y = Axis(float(edges.min() - pad), float(edges.max() + pad), sketch.height - 36, 20)
        plot_axes(sketch, x, y, "step", label)
        names = []
        for prefix, colour, name in parts:
            rows = data[data[f"{prefix}n"] > 0]
            columns = [rows[f"{prefix}{side}"] for side in ("low", "mean", "high")]
            low, mean, high = ([(x(a), y(b)) for a, b in zip(rows["step"], column, strict=True)] for column in columns)
            sketch.area([*low, *reversed(high)], colour)
            sketch.line(mean, colour, 1.6 if not prefix else 1.2, "" if not prefix else "4 3")
            if not prefix:
                sketch.dots(mean, colour)
            names.append((mean[-1], name, colour))
        _end_labels(sketch, names)

    return draw


def _end_labels(sketch: Sketch, names: Sequence[tuple[Point, str, str]]) -> None:
    heights = spread([place[1] for place, *_ in names], 11)
    for (place, name, colour), height in zip(names, heights, strict=True):
        sketch.text(place[0] + 6, height + 3, name, colour)


def _table(data: pd.DataFrame, with_baseline: bool) -> Table:
    rows = (
        data if len(data) <= TABLE_ROWS else data.iloc[np.unique(np.linspace(0, len(data) - 1, TABLE_ROWS).astype(int))]
    )
    sides = [("", "This arm"), *([("baseline_", "Baseline")] if with_baseline else [])]
    titles = [title for _, name in sides for title in (name, f"{name}, lowest to highest", f"{name}, runs")]
    cells: list[tuple[Cell, ...]] = []
    for row in rows.to_dict("records"):
        found: list[Cell] = []
        for prefix, _ in sides:
            low, high = (common.number(row[f"{prefix}{side}"], 4) for side in ("low", "high"))
            some = row[f"{prefix}n"] > 0
            found += [
                common.number(row[f"{prefix}mean"], 4),
                f"{low} to {high}" if some else "–",
                int(row[f"{prefix}n"]),
            ]
        cells.append((int(row["step"]), *found))
    return Table(common.right("Step", *titles), tuple(cells), "Validation loss by step: mean over seeds, range, runs")
