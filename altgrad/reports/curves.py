"""The curves of an arm: a light drawing, a table with the same figures, and the values that the zoomable chart reads.

`docs/javascripts/curves.js` draws them over the drawing. Without it the drawing and the table stay.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.reports import columns as col
from altgrad.reports.document import macros_of
from altgrad.site import MUTED, PALETTE, Axis, Block, Chart, ChartBlock, Column, Sketch, Table, plot_axes
from altgrad.site.sketch import spread

POINTS = 200
"""Most points a run has in the JSON of an arm; the JSON of its runs has all that were recorded."""
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
    steps = np.union1d(own["step"], other["step"])
    beside: dict[str, NDArray[Any]] = {"step": steps}
    for prefix, found in (("", own), ("baseline_", other)):
        there = np.searchsorted(steps, found["step"])
        for name in ("mean", "low", "high", "n"):
            beside[prefix + name] = np.zeros(len(steps), np.int64) if name == "n" else np.full(len(steps), np.nan)
            beside[prefix + name][there] = found[name]
    data, first, last = pd.DataFrame(beside), own.iloc[0], own.iloc[-1]
    description = str(macros_of("layers").loss(first, last)).strip()
    draw = _drawing(data, "val_loss" if foreign else "validation loss (nats a character)")
    chart = Chart("loss", "Validation loss by step", description, data, sketch=draw, height=3.3)
    return [ChartBlock(chart)], [_table(data, with_baseline)]


def runs_value(loader: ExperimentDataLoader, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """All runs of an arm, column by column: {id, seed, status, role, step, tokens, seconds, loss, val_loss}."""
    found = []
    names = ("run_id", "seed", "status", "role")
    for run_id, seed, status, role in zip(*(runs[name].tolist() for name in names), strict=True):
        history = loader.history(run_id)
        keep = np.arange(len(history)) % max(1, math.ceil(len(history) / POINTS)) == 0
        if "val_loss" in history:
            keep |= ~np.isnan(history["val_loss"].to_numpy())
        own = history_value(history, keep)
        own = {name: own[name] for name in CURVES if name in own}
        found.append({"id": run_id, "seed": seed, "status": status, "role": role, **own})
    return found


def history_value(history: pd.DataFrame, keep: NDArray[np.bool_] | None = None) -> dict[str, list[Any]]:
    """A history, or the rows to keep of it, column by column; steps are whole, and all else as `column` writes it."""
    values = history.to_numpy(np.float64).T
    values = values if keep is None else values[:, keep]
    found = dict(zip(map(str, history), column(values), strict=True))
    return found | {"step": values[list(history).index("step")].astype(np.int64).tolist()}


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


_TENS = np.array([float(f"1e{power}") for power in range(23)])
"""The powers of ten that a float holds exactly."""


def column(values: NDArray[np.float64]) -> list[Any]:
    """The floats of an array of any shape as `plain` writes them, in a tenth of its time."""
    known = np.isfinite(values)
    size = np.abs(np.where(known & (values != 0), values, 1.0))
    power = 6 - np.floor(np.log10(size)).astype(np.int64)
    tens = _TENS[np.minimum(np.abs(power), len(_TENS) - 1)]
    whole = np.where(power < 0, np.rint(values / tens) * tens, np.rint(values * np.where(power < 0, 1, tens)) / tens)
    shown = whole.astype(object)
    shown[~known] = None
    for place in np.argwhere(known & (np.abs(power) >= len(_TENS))):
        shown[tuple(place)] = plain(float(values[tuple(place)]))
    found: list[Any] = shown.tolist()
    return found


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
    loss = loss[drawn]
    found, place = np.unique(step[drawn], return_inverse=True)
    n, low, high = np.bincount(place, minlength=len(found)), np.full(len(found), np.inf), np.full(len(found), -np.inf)
    np.minimum.at(low, place, loss)
    np.maximum.at(high, place, loss)
    mean = np.bincount(place, loss, len(found)) / n
    return pd.DataFrame({"step": found, "mean": mean, "low": low, "high": high, "n": n})


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
    return col.table(rows, columns, "Validation loss: mean over seeds, range, runs")
