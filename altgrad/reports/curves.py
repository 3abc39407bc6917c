"""The curves of an arm: a light drawing, a table with the same figures, and the values that the zoomable chart reads.

`docs/javascripts/curves.js` draws them over the drawing. Without it the drawing and the table stay.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports import columns as col
from altgrad.site import MUTED, PALETTE, Axis, Block, Chart, ChartBlock, Column, Sketch, Table, plot_axes
from altgrad.site.sketch import spread

POINTS = 200
"""Most points a run has in the JSON of an arm; the JSON of a run has all that were recorded."""
CURVES = ("step", "tokens", "seconds", "loss", "val_loss")
TABLE_ROWS = 12
"""Most rows of the table beside the curves; the CSV has all."""


def curves(
    own: pd.DataFrame, other: pd.DataFrame, with_baseline: bool, foreign: bool
) -> tuple[list[Block], list[Block]]:
    """The chart and the table of an arm's validation losses over its baseline's, both as `losses_by_step` gives them.

    Nothing where the arm has none. Many arms share a baseline, so the caller keeps what `losses_by_step` gave.
    """
    if own.empty:
        return [], []
    data = own.merge(other.set_index("step").add_prefix("baseline_").reset_index(), "outer", "step")
    data = data.sort_values("step", ignore_index=True).fillna({"n": 0, "baseline_n": 0})
    data = data.astype({"n": int, "baseline_n": int})
    shown = data[data["n"] > 0]
    first, last = shown.iloc[0], shown.iloc[-1]
    description = (
        f"Mean over the seeds by step, with the range from the lowest to the highest seed. At step {last['step']:.0f} "
        f"the {last['n']:.0f} runs of this arm have {words.number(last['mean'])} "
        f"({words.number(last['low'])} to {words.number(last['high'])}), at step {first['step']:.0f} they had "
        f"{words.number(first['mean'])}."
    )
    draw = _drawing(data, "val_loss" if foreign else "validation loss (nats a character)")
    chart = Chart("loss", "Validation loss by step", description, data, sketch=draw, height=3.3)
    return [ChartBlock(chart)], [_table(data, with_baseline)]


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


def compact(value: Any) -> bytes:
    """Compact JSON in ASCII; equal values give equal bytes."""
    return (json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False) + "\n").encode()


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
        ends = []
        for prefix, colour, name in parts:
            rows = data[data[f"{prefix}n"] > 0]
            low, mean, high = (
                [(x(step), y(loss)) for step, loss in zip(rows["step"], rows[f"{prefix}{side}"], strict=True)]
                for side in ("low", "mean", "high")
            )
            sketch.area([*low, *reversed(high)], colour)
            sketch.line(mean, colour, 1.2 if prefix else 1.6, "4 3" if prefix else "")
            if not prefix:
                sketch.dots(mean, colour)
            ends.append((*mean[-1], name, colour))
        for (place, _, name, colour), height in zip(ends, spread([end[1] for end in ends], 11), strict=True):
            sketch.text(place + 6, height + 3, name, colour)

    return draw


def _table(data: pd.DataFrame, with_baseline: bool) -> Table:
    rows = data.iloc[np.linspace(0, len(data) - 1, min(len(data), TABLE_ROWS)).astype(int)]
    columns: list[Column] = [col.count("Step", "step")]
    for prefix, name in (("", "This arm"), ("baseline_", "Baseline"))[: 1 + with_baseline]:
        reach = f"{{{prefix}low:.4f}} to {{{prefix}high:.4f}}"
        columns += [col.number(name, f"{prefix}mean", 4), col.filled(f"{name}, lowest to highest", reach)]
        columns.append(col.count(f"{name}, runs", f"{prefix}n"))
    return col.table(rows, columns, "Validation loss by step: mean over seeds, range, runs")
