"""The curves of an arm: a light drawing, a table with the same figures, and the values that the zoomable chart reads.

`docs/javascripts/curves.js` draws them over the drawing. Without it the drawing and the table stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis.effects import OWN, Measure, metrics_of
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import t_quantile
from altgrad.reports import columns as col
from altgrad.reports.document import macros_of
from altgrad.site import MUTED, Axis, Block, Chart, ChartBlock, Column, Sketch, Table, plot_axes
from altgrad.site.sketch import spread
from altgrad.text import visible

POINTS = 200
"""Most points that a curve of a run has in the JSON of an arm; the JSON of its runs has all that were recorded."""
AXES = ("step", "tokens", "seconds")
CURVES = 40
"""Most metrics of an arm of another loop that have curves."""
_TAKEN = ("id", "seed", "status", "role", "gap", *AXES)
"""What a run's JSON and the scripts call something else."""
TABLE_ROWS = 12
"""Most rows of the table beside the curves; the CSV has all."""


class Losses(NamedTuple):
    """A metric of an arm, such as its validation loss: a row of `values` a run, a column a step; NaN where a run has
    none there."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    pairs: dict[int, int]
    """The row of the first run of each seed; held-out tuning seeds take no part."""


class Curves(NamedTuple):
    """The chart and the table of an arm's metric, whether the mean of its runs is a curve, its pairs, and `lost`."""

    chart: list[Block]
    table: list[Block]
    mean: bool = False
    pairs: int = 0
    lost: dict[str, int] | None = None


def curves(own: Losses, other: Losses, with_baseline: bool, measure: Measure | None, colour: str) -> Curves:
    """The chart and the table of an arm's `measure` over its baseline's, both as `losses_of` gives them.

    The arm's own are drawn in `colour`. Nothing where the arm has none. Many arms share a baseline, so the caller
    keeps what `losses_of` gave.
    """
    if measure is None or not own.steps.size:
        return Curves([], [])
    found = {"": by_step(own), "baseline_": by_step(other), "gap_": gap_by_step(own, other)}
    steps = np.union1d(own.steps, other.steps)
    beside: dict[str, NDArray[Any]] = {"step": steps}
    for prefix, rows in found.items():
        there = np.searchsorted(steps, rows["step"])
        for name in ("mean", "low", "high", "n"):
            beside[prefix + name] = np.zeros(len(steps), np.int64) if name == "n" else np.full(len(steps), np.nan)
            beside[prefix + name][there] = rows[name]
    data = pd.DataFrame(beside)
    words, told = macros_of("layers"), found[""].to_dict("records")
    same = bool(found[""]["mean"].notna().all())
    digits = measure.digits - 1 if measure.digits else 0
    gone = lost(own)
    description = (
        words.loss(told[0], told[-1], digits) if same else words.losses(told[0], len(own.values), gone, digits)
    )
    draw = _drawing({"baseline_": other, "": own}, data, colour, measure.axis)
    title = f"{capital(measure.title)} by step"
    chart = Chart("loss", title, str(description).strip(), data, sketch=draw, height=3.3)
    return Curves([ChartBlock(chart)], [_table(data, with_baseline, measure)], same, int(data["gap_n"].max()), gone)


def capital(title: str) -> str:
    """The name of a measure at the beginning of a sentence; one of somebody's loop stays as it is."""
    return f"{title[:1].upper()}{title[1:]}" if title == OWN.title else title


def metrics_of_arm(loader: ExperimentDataLoader, runs: pd.DataFrame, measure: Measure | None) -> dict[str, str]:
    """The metrics that an arm's curves can show: their names in its JSON, and what they are called; `measure` first."""
    records = [loader.records[run_id] for run_id in runs["run_id"]]
    if measure is None:
        return {}
    if records[0].config.foreign is None:
        return {OWN.name: OWN.title, "loss": "training loss"}
    found = dict.fromkeys([measure.name, *metrics_of(records, ("step", *AXES))])
    return {metric_key(name): visible(name) for name in [*found][:CURVES]}


def metric_key(name: str) -> str:
    """What a metric is called in the JSON of an arm."""
    return f"{name}_" if name in _TAKEN else name


def runs_value(loader: ExperimentDataLoader, runs: pd.DataFrame, metrics: Collection[str]) -> list[dict[str, Any]]:
    """All runs of an arm, column by column: {id, seed, status, role, step, tokens, seconds} and the metrics."""
    found = []
    names = ("run_id", "seed", "status", "role")
    for run_id, seed, status, role in zip(*(runs[name].tolist() for name in names), strict=True):
        history = loader.history(run_id).rename(columns=lambda name: name if name in AXES else metric_key(name))
        keep = np.arange(len(history)) % max(1, math.ceil(len(history) / POINTS)) == 0
        for place, name in enumerate(metrics):
            known = np.flatnonzero(~np.isnan(history[name].to_numpy())) if name in history else np.empty(0, np.int64)
            if place == 0 or keep[known].sum() < min(len(known), POINTS // 2):  # it is in few rows
                keep[known[:: max(1, math.ceil(len(known) / POINTS))]] = True
        own = history_value(history, keep)
        own = {name: own[name] for name in (*AXES, *metrics) if name in own}
        found.append({"id": run_id, "seed": None if pd.isna(seed) else seed, "status": status, "role": role, **own})
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


def losses_of(loader: ExperimentDataLoader, arm: str | None, metric: str = OWN.name) -> Losses:
    """A metric of the runs of an arm that have any of it."""
    steps, losses, pairs = list[NDArray[np.int64]](), list[NDArray[np.float64]](), dict[int, int]()
    rows = loader.runs[loader.runs["arm"] == arm]
    for run_id, seed, role in zip(rows["run_id"], rows["seed"], rows["role"], strict=True):
        history = loader.history(run_id)
        loss = history[metric].to_numpy(np.float64) if metric in history else np.empty(0)
        known = np.isfinite(loss) & (np.abs(np.nan_to_num(loss)) < 1e300)
        if known.any():
            if role == "report" and pd.notna(seed):
                pairs.setdefault(seed, len(steps))
            steps.append(history["step"].to_numpy(np.int64)[known])
            losses.append(loss[known])
    every = np.unique(np.concatenate([np.empty(0, np.int64), *steps]))
    values = np.full((len(steps), len(every)), np.nan)
    for row, (at, loss) in enumerate(zip(steps, losses, strict=True)):
        values[row, np.searchsorted(every, at)] = loss
    return Losses(every, values, pairs)


def by_step(losses: Losses) -> pd.DataFrame:
    """Columns step, mean, low, high, n at each step where a run was evaluated; mean is NaN where not every run was.

    A mean of some runs at one step and of others at the next is no curve of anything.
    """
    known = ~np.isnan(losses.values)
    n = known.sum(0)
    mean = np.where(known, losses.values, 0).sum(0) / np.where(n == len(known), n, np.nan)
    low, high = (np.where(known, losses.values, end).T for end in (np.inf, -np.inf))
    ends = {"low": low.min(1, initial=np.inf), "high": high.max(1, initial=-np.inf)}
    return pd.DataFrame({"step": losses.steps, "mean": mean, **ends, "n": n})


def lost(losses: Losses) -> dict[str, int] | None:
    """Of how many ``runs`` of how many (``all``) no finite value follows, and from which ``step`` on that is so first.

    None where all runs have one at every step, or where they were evaluated at different steps.
    """
    known = ~np.isnan(losses.values)
    if known.all() or (known[:, 1:] > known[:, :-1]).any():
        return None
    first = int(losses.steps[known.all(0).argmin()])
    return {"step": first, "runs": int((~known).any(1).sum()), "all": len(known)}


def gap_by_step(own: Losses, other: Losses) -> pd.DataFrame:
    """Columns step, mean, low, high, n of the differences of runs of one seed at one step, with the 95% t interval.

    At the steps where every pair has both; without an interval, NaN, for fewer than two pairs.
    """
    seeds = [seed for seed in own.pairs if seed in other.pairs]
    steps, here, there = np.intersect1d(own.steps, other.steps, return_indices=True)
    ours, theirs = own.values[[own.pairs[seed] for seed in seeds]], other.values[[other.pairs[seed] for seed in seeds]]
    gaps = ours[:, here] - theirs[:, there]
    whole = ~np.isnan(gaps).any(0) & bool(seeds)
    gaps, n = gaps[:, whole], len(seeds)
    mean = gaps.sum(0) / max(n, 1)
    half = t_quantile(n - 1) * gaps.std(0, ddof=1) / math.sqrt(n) if n > 1 else np.full(len(mean), np.nan)
    return pd.DataFrame({"step": steps[whole], "mean": mean, "low": mean - half, "high": mean + half, "n": n})


def _drawing(losses: Mapping[str, Losses], data: pd.DataFrame, own: str, label: str) -> Any:
    """How the chart is drawn: the arm's band and line over the baseline's, named at their right ends.

    Of runs that do not all stand at the same steps no mean is a curve: a thin line a run.
    """
    looks = {"baseline_": (MUTED, "baseline"), "": (own, "this arm")}
    parts = [(prefix, *looks[prefix]) for prefix, found in losses.items() if found.steps.size]
    edges = pd.concat([data[f"{prefix}{side}"] for prefix, *_ in parts for side in ("low", "high")]).dropna()
    pad = 0.04 * (edges.max() - edges.min()) or 0.5

    def draw(sketch: Sketch) -> None:
        x = Axis(float(data["step"].min()), float(data["step"].max()), 48, sketch.width - 78)
        y = Axis(float(edges.min() - pad), float(edges.max() + pad), sketch.height - 36, 20)
        plot_axes(sketch, x, y, "step", label)
        ends = []
        for prefix, colour, name in parts:
            rows, dash = data[data[f"{prefix}n"] > 0], "4 3" if prefix else ""
            if rows[f"{prefix}mean"].isna().any():
                steps, values = losses[prefix].steps, losses[prefix].values
                for run in values:
                    line = [(x(steps[place]), y(run[place])) for place in np.flatnonzero(~np.isnan(run))]
                    sketch.line(line, colour, 0.8, dash)
                    sketch.dots(line[-1:], colour, 1.5)
                ends.append((x(steps[-1]), y(float(np.nanmean(values[:, -1]))), name, colour))
                continue
            low, mean, high = (
                [(x(step), y(loss)) for step, loss in zip(rows["step"], rows[f"{prefix}{side}"], strict=True)]
                for side in ("low", "mean", "high")
            )
            sketch.area([*low, *reversed(high)], colour)
            sketch.line(mean, colour, 1.2 if prefix else 1.6, dash)
            if not prefix:
                sketch.dots(mean, colour)
            ends.append((*mean[-1], name, colour))
        for (place, _, name, colour), height in zip(ends, spread([end[1] for end in ends], 11), strict=True):
            sketch.text(place + 6, height + 3, name, colour)

    return draw


def _table(data: pd.DataFrame, with_baseline: bool, measure: Measure) -> Table:
    rows = data.iloc[np.linspace(0, len(data) - 1, min(len(data), TABLE_ROWS)).astype(int)]
    columns: list[Column] = [col.count("Step", "step")]
    digits = measure.digits
    if not with_baseline and data["n"].max() == 1:
        title = capital(measure.title)
        return col.table(rows, [*columns, col.number(title, "low", digits)], title)
    for prefix, name in (("", "This arm"), ("baseline_", "Baseline"))[: 1 + with_baseline]:
        reach = f"{{{prefix}low:.{digits}f}} to {{{prefix}high:.{digits}f}}"
        columns += [col.number(name, f"{prefix}mean", digits), col.filled(f"{name}, lowest to highest", reach)]
        columns.append(col.count(f"{name}, runs", f"{prefix}n"))
    if data["gap_n"].any():
        gap = col.interval("Difference, 95% interval", "gap_low", "gap_high", digits)
        columns += [col.signed("Difference, paired by seed", "gap_mean", digits), gap, col.count("Pairs", "gap_n")]
    return col.table(rows, columns, f"{capital(measure.title)}: mean over seeds, range, runs")
