"""The curves of an arm: a light drawing, a table with the same figures, and the values that the zoomable chart reads.

`docs/javascripts/curves.js` draws them over the drawing. Without it the drawing and the table stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.pages import MUTED, PALETTE, Axis, Block, Chart, ChartBlock, PageRef, Paragraph, Table, md
from altgrad.pages.content import Cell, Link
from altgrad.pages.sketch import Point, Sketch, plot_axes, spread
from altgrad.reports import columns as col

POINTS = 200
"""Most points a run has in the JSON of an arm; the JSON of a run has all that were recorded."""
CURVES = ("step", "tokens", "seconds", "loss", "val_loss")
TABLE_ROWS = 12
"""Most rows of the table beside the curves; the CSV has all."""


def curves(
    loader: ExperimentDataLoader,
    arm: str,
    runs: pd.DataFrame,
    baseline: str | None,
    losses: Callable[[str | None], pd.DataFrame],
) -> list[Block]:
    """The section; where no validation loss was recorded, a sentence that says so.

    `losses` is `losses_by_step` of the loader; many arms share a baseline, so its caller keeps what it gave.
    """
    data = _by_step(losses(arm), losses(baseline))
    if data.empty:
        return [Paragraph("No run of this arm recorded a validation loss.")]
    foreign = bool(runs["foreign"].iloc[0])
    label = "val_loss" if foreign else "validation loss (nats a character)"
    shown = data[data["n"] > 0]
    first, last = shown.iloc[0], shown.iloc[-1]
    description = (
        f"Mean over the seeds by step, with the range from the lowest to the highest seed. At step {last['step']:.0f} "
        f"the {last['n']:.0f} runs of this arm have {words.number(last['mean'])} "
        f"({words.number(last['low'])} to {words.number(last['high'])}), at step {first['step']:.0f} they had "
        f"{words.number(first['mean'])}."
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
    for run in runs[["run_id", "seed", "status", "role"]].itertuples():
        history = loader.history(run.run_id)
        known = {name: history[name].to_numpy() for name in CURVES if name in history}
        keep = np.arange(len(history)) % max(1, math.ceil(len(history) / POINTS)) == 0
        if "val_loss" in known:
            keep |= ~np.isnan(known["val_loss"])
        columns = {name: plain(values[keep].tolist()) for name, values in known.items()}
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


def losses_by_step(loader: ExperimentDataLoader, arm: str | None) -> pd.DataFrame:
    """Columns step, mean, low, high, n: the validation losses of an arm's runs at each step where one was evaluated."""
    steps, losses = [np.empty(0, np.int64)], [np.empty(0)]
    for run_id in loader.runs.loc[loader.runs["arm"] == arm, "run_id"] if arm is not None else ():
        history = loader.history(run_id)
        if "val_loss" in history:
            steps.append(history["step"].to_numpy(np.int64))
            losses.append(history["val_loss"].to_numpy(np.float64))
    step, loss = np.concatenate(steps), np.concatenate(losses)
    drawn = np.isfinite(loss) & (np.abs(np.nan_to_num(loss)) < 1e300)
    found = pd.DataFrame({"step": step[drawn], "loss": loss[drawn]}).groupby("step")["loss"]
    return found.agg(mean="mean", low="min", high="max", n="count").reset_index()


def _by_step(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """`losses_by_step` of an arm, and that of its baseline in columns ``baseline_...``."""
    if own.empty:
        return own
    merged = own.merge(
        other.rename(columns=lambda name: name if name == "step" else f"baseline_{name}"), "outer", "step"
    )
    return (
        merged.sort_values("step", ignore_index=True)
        .fillna({"n": 0, "baseline_n": 0})
        .astype({"n": int, "baseline_n": int})
    )


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
            low, high = (words.number(row[f"{prefix}{side}"], 4) for side in ("low", "high"))
            some = row[f"{prefix}n"] > 0
            found += [
                words.number(row[f"{prefix}mean"], 4),
                f"{low} to {high}" if some else "–",
                int(row[f"{prefix}n"]),
            ]
        cells.append((int(row["step"]), *found))
    return Table(col.right("Step", *titles), tuple(cells), "Validation loss by step: mean over seeds, range, runs")
