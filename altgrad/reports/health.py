"""The health of the layers: heat maps and curves over time, the last look in tables by subject, the codes in use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.config import LAYER_TYPES, OPERAND_NAMES
from altgrad.formats import FloatFormat, get_format
from altgrad.pages import (
    GRID,
    MUTED,
    PALETTE,
    Axis,
    Block,
    Chart,
    ChartBlock,
    Heading,
    Paragraph,
    Sketch,
    Table,
    plot_axes,
)
from altgrad.pages.sketch import INCH
from altgrad.reports import columns as col
from altgrad.reports.heat_map import Levels, heat_map
from altgrad.runs import RunRecord
from altgrad.runs.pack import is_histogram

_MORE_THAN_ZERO = float(np.nextafter(0.0, 1.0))
LOST = Levels(
    (_MORE_THAN_ZERO, 0.001, 0.01, 0.05, 0.25),
    ("0", "below 0.1%", "below 1%", "below 5%", "below 25%", "25% or more"),
    words.percent,
)
SQNR = Levels(
    (35.0, 30.0, 25.0, 20.0, 15.0),
    ("35 dB or more", "30 to 35", "25 to 30", "20 to 25", "15 to 20", "below 15"),
    lambda value: f"{value:.1f} dB",
    missing="nothing was lost",
)
STALL = Levels(
    (0.25, 0.5, 0.75, 0.9, 0.99),
    ("below 25%", "below 50%", "below 75%", "below 90%", "below 99%", "99% or more"),
    words.percent,
    missing="no updates",
)
RANK = Levels(
    (0.95, 0.9, 0.8, 0.65, 0.5),
    ("95% or more", "90 to 95%", "80 to 90%", "65 to 80%", "50 to 65%", "below 50%"),
    words.percent,
)
LOSSES: tuple[tuple[str, str, Levels], ...] = (
    ("underflow", "Underflow", LOST),
    ("overflow", "Overflow", LOST),
    ("sqnr_db", "SQNR", SQNR),
)
"""What rounding does to operands: statistic, title, levels."""
MEANINGS = {
    "underflow": "Fraction of nonzero elements that rounding turned into zero.",
    "overflow": "Fraction of nonzero elements beyond the format's largest value.",
    "sqnr_db": "Signal-to-quantization-noise ratio.",
}

_Columns = tuple[tuple[str, str, Callable[[float], str]], ...]


_OFTEN_ZERO = ("nonfinite", "overflow", "underflow", "dead", "zero", "stall_ratio", "zero_update")
"""Figures whose column says nothing where all of it is 0: the table's caption says it."""


def _figure(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _count(value: float) -> str:
    return f"{value:,.0f}"


_OPERANDS: _Columns = (
    ("amax", "Amax", _figure),
    ("scale", "Scale", _figure),
    ("nonfinite", "NaN, infinite", _count),
    ("overflow", "Overflow", words.percent),
    ("underflow", "Underflow", words.percent),
    ("sqnr_db", "SQNR (dB)", lambda value: words.number(value, 1)),
    ("dead", "Dead", words.percent),
    ("codes_used", "Codes used", words.percent),
    ("code_entropy", "Entropy (bits)", lambda value: words.number(value, 2)),
)
_WEIGHTS: _Columns = (
    ("spectral_norm", "Spectral norm", _figure),
    ("stable_rank", "Stable rank", lambda value: words.number(value, 1)),
    ("effective_rank", "Effective rank", lambda value: words.number(value, 1)),
    ("code_position", "Code position", words.number),
    ("grid_distance", "Distance to the grid (ulp)", words.number),
)
_GRADIENTS: _Columns = (
    ("norm_l2", "Norm L2", _figure),
    ("norm_inf", "Largest", _figure),
    ("zero", "Zero", words.percent),
    ("nonfinite", "NaN, infinite", _count),
    ("stiffness_correlation", "Correlation with S", words.number),
    ("shadow_cosine", "Cosine to unrounded", lambda value: words.number(value, 4)),
    ("shadow_snr_db", "SNR to unrounded (dB)", lambda value: words.number(value, 1)),
)
_STEP: _Columns = (
    ("norm_l2", "Norm L2", _figure),
    ("stall_ratio", "Stall ratio", words.percent),
    ("zero_update", "No change proposed", words.percent),
    ("ulps_rms", "Step (ulps, rms)", _figure),
)
_ULPS: _Columns = (
    ("ulps_0", "0", words.percent),
    *((f"ulps_2^{power}", f"below 2^{power}", words.percent) for power in (-6, -4, -2, 0, 2, 4)),
    ("ulps_inf", "2^4 or more", words.percent),
)


def over_time(looks: pd.DataFrame, note: str, prefix: str = "") -> list[Block]:
    """Charts of what `ExperimentDataLoader.looks` found: a heat map or curves for each figure that was recorded.

    Args:
        looks: figures by step and layer.
        note: whose they are; the charts' descriptions begin with it.
        prefix: of the charts' ids, where a page has several runs.
    """
    blocks: list[Block] = []
    calm = []
    for statistic, title, levels in LOSSES:
        data = _of(looks, statistic, OPERAND_NAMES)
        if data.empty:
            continue
        if levels is LOST and not (data["value"] > 0).any():
            calm.append(title.lower())
        else:
            said = f"{MEANINGS[statistic]} {note}"
            name = f"{prefix}{statistic.removesuffix('_db')}"
            blocks.append(lost(name, f"{title} by layer and step", data, levels, said))
    stall = _of(looks, "stall_ratio", {"update": ""})
    if len(stall) and not (stall["value"] > 0).any():
        calm.append("stall ratio")
    elif len(stall):
        said = f"Share of the proposed changes that left the stored code as it was. {note}"
        titles = {"update": "optimizer's step"}
        chart = heat_map(f"{prefix}stall", "Stall ratio by layer and step", stall, STALL, titles, said)
        blocks.append(ChartBlock(chart))
    rank = _of(looks, "effective_rank", {"weight": ""})
    if len(rank):
        first = rank.drop_duplicates("layer").set_index("layer")["value"].replace(0.0, np.nan)
        relative = rank.assign(value=rank["value"] / rank["layer"].map(first))
        said = f"Effective rank of each weight relative to the first look. {note}"
        title = "Effective rank by layer and step, relative to the first look"
        chart = heat_map(f"{prefix}rank", title, relative, RANK, {"weight": "weights"}, said)
        blocks.append(ChartBlock(chart))
    blocks += _gradient_norms(looks, note, prefix)
    if calm:
        text = f"{words.names(calm)}: 0 in every layer at every look."
        blocks.insert(0, Paragraph(text[0].upper() + text[1:]))
    return blocks


def lost(identity: str, title: str, data: pd.DataFrame, levels: Levels, note: str) -> ChartBlock:
    """A heat map of what rounding did to the operands: rows layer, operand, step, value."""
    return ChartBlock(heat_map(identity, title, data, levels, OPERAND_NAMES, note))


def last_look(loader: ExperimentDataLoader, run_ids: Sequence[str], last: pd.DataFrame) -> list[Block]:
    """The last recorded figures as tables by subject, and the codes in use; nothing without looks.

    `last` is what `ExperimentDataLoader.last_look` gives for these runs.
    """
    if last.empty:
        return []
    layers = list(dict.fromkeys([*last["layer"][last["operand"] == "weight"].unique(), *last["layer"].unique()]))
    histograms = code_histograms(loader, run_ids, last)
    last = last[~is_histogram(last)].assign(place=last["layer"].map(layers.index))
    who = f"mean over {len(run_ids)} runs" if len(run_ids) > 1 else "one run"
    who += f", step {int(last['step'].max())}"
    tables = [
        _table(
            last,
            tuple(OPERAND_NAMES),
            _OPERANDS,
            f"Operands at the last look ({who}), fractions of nonzero elements",
            "",
        ),
        _table(last, ("weight",), _WEIGHTS, f"Weights at the last look ({who})", "weights"),
        _table(last, ("gradient",), _GRADIENTS, f"Gradients of the weights at the last look ({who})", "gradients"),
        _table(last, ("update",), _STEP, f"The optimizer's step at the last look ({who})", "step"),
        _table(
            last,
            ("update",),
            _ULPS,
            f"How far that step moved the weights, in ulps: fractions of elements ({who})",
            "ulps",
        ),
    ]
    return [*histograms, *(table for table in tables if table is not None)]


def code_histograms(
    loader: ExperimentDataLoader, run_ids: Sequence[str], last: pd.DataFrame | None = None
) -> list[Block]:
    """Which codes were in use at the last look that counted them: a chart for each operand and format (runs shift).

    `last` is the last look of all the runs, where the caller has it.
    """
    found: dict[tuple[str, FloatFormat], list[str]] = {}
    for run_id in run_ids:
        layers = loader.records[run_id].coded
        counted = is_histogram(layers).to_numpy()
        steps, operands = layers["step"].to_numpy()[counted], layers["operand"].array[counted]
        for operand in OPERAND_NAMES:
            own = steps[operands == operand]
            fmt = _format(loader.records[run_id], operand, int(own.max())) if len(own) else None
            if fmt is not None:
                found.setdefault((operand, fmt), []).append(run_id)
    blocks: list[Block] = []
    for (operand, fmt), ids in found.items():
        looked = last if last is not None and len(ids) == len(run_ids) else loader.last_look(ids)
        chart = _codes(looked[is_histogram(looked) & (looked["operand"] == operand)], operand, fmt, len(ids))
        blocks += [ChartBlock(chart)] if chart else []
    return blocks


def _of(looks: pd.DataFrame, statistic: str, operands: Iterable[str]) -> pd.DataFrame:
    found = looks[(looks["statistic"] == statistic) & looks["operand"].isin(list(operands))]
    return found[["layer", "layer_type", "operand", "step", "value"]].reset_index(drop=True)


def _gradient_norms(looks: pd.DataFrame, note: str, prefix: str) -> list[Block]:
    norms = _of(looks, "norm_l2", ("gradient",))
    data = norms[np.isfinite(norms["value"]) & (norms["value"] > 0)].reset_index(drop=True)
    if data.empty:
        return []
    colours = dict(zip(_kinds(data["layer_type"]), itertools.cycle(PALETTE), strict=False))
    dashes = dict(zip(colours, itertools.cycle(("", "6 2", "2 2", "7 2 2 2")), strict=False))
    last = data[data["step"] == data["step"].max()].sort_values("value")
    absent = (
        "" if len(data) == len(norms) else f" {len(norms) - len(data)} norms that are 0 or not finite are left out."
    )
    description = (
        f"{note} L2 norm of the gradient of each of {data['layer'].nunique()} weights, before clipping, from step "
        f"{data['step'].min()} to {data['step'].max()}. At the end the largest is {last['layer'].iloc[-1]} "
        f"{last['value'].iloc[-1]:.3g}, the smallest {last['layer'].iloc[0]} {last['value'].iloc[0]:.3g}.{absent}"
    ).strip()

    def draw(sketch: Sketch) -> None:
        x = Axis(float(data["step"].min()), float(data["step"].max()), 54, sketch.width - 10)
        low, high = float(data["value"].min()), float(data["value"].max())
        y = Axis(low / 1.2, high * 1.2, sketch.height - 34, 34, log=True)
        plot_axes(sketch, x, y, "step", "")
        for (kind, _), line in data.groupby(["layer_type", "layer"], sort=False, observed=True):
            points = ((x(step), y(value)) for step, value in zip(line["step"], line["value"], strict=True))
            sketch.line(points, colours[str(kind)], 1.1, dashes[str(kind)])
        sketch.text(2, 14, "gradient norm", MUTED)
        place = 82.0
        for name, colour in colours.items():
            sketch.line([(place, 11), (place + 20, 11)], colour, 1.6, dashes[name])
            sketch.text(place + 24, 14, name, colour)
            place += 42 + 4.9 * len(name)

    title = "Gradient norm of each layer by step"
    chart = Chart(f"{prefix}gradients", title, description, data, sketch=draw, height=2.8)
    return [ChartBlock(chart)]


def _kinds(layer_types: Iterable[str]) -> list[str]:
    """The layer types that occur, those of the model in its order."""
    order = {str(kind): number for number, kind in enumerate(LAYER_TYPES)}
    return sorted(set(layer_types), key=lambda kind: (order.get(kind, len(order)), kind))


def _table(last: pd.DataFrame, operands: Sequence[str], columns: _Columns, caption: str, name: str) -> Table | None:
    """One subject of the last look: only the columns and rows that were recorded."""
    titles = {statistic: title for statistic, title, _ in columns}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    steps: dict[str, int] = {}
    some = set()
    names = ("layer", "layer_type", "operand")
    mine = last[last["operand"].isin(operands) & last["statistic"].isin(titles)]
    columns_of = [mine[name].tolist() for name in (*names, "place", "statistic", "step", "value")]
    for *named, row, statistic, step, value in zip(*columns_of, strict=True):
        place = (operands.index(named[2]), row)
        found.setdefault(place, dict(zip(names, named, strict=True)))[statistic] = value
        steps[statistic] = max(step, steps.get(statistic, 0))
        some |= {statistic} if value != 0 else set()
    zero = [statistic for statistic in titles if statistic in _OFTEN_ZERO and statistic in steps.keys() - some]
    shown = [(key, title, text) for key, title, text in columns if key in steps and key not in zero]
    if not shown:
        return None
    records = [found[place] for place in sorted(found)]
    rows = tuple(
        (
            row["layer"],
            OPERAND_NAMES[row["operand"]] if len(operands) > 1 else row["layer_type"],
            *(text(row[key]) if not math.isnan(row.get(key, math.nan)) else None for key, _, text in shown),
        )
        for row in records
    )
    newest = int(last["step"].max())
    heads = [title + (f" (step {steps[key]})" if steps[key] != newest else "") for key, title, _ in shown]
    absent = f". {words.names([titles[key] for key in zero])}: 0 everywhere" if zero else ""
    return Table(
        ("Layer", "Operand" if len(operands) > 1 else "Type", *col.right(*heads)),
        rows,
        caption + absent,
        data=pd.DataFrame(records),
        id=f"health-{name}" if name else "health",
    )


def _format(record: RunRecord, operand: str, step: int) -> FloatFormat | None:
    """The format of an operand at a step: the config's, or the one that a recorded shift changed it to."""
    found = get_format(getattr(record.config.quantize, operand))
    for event in record.run["events"]:
        if isinstance(event, dict) and event.get("kind") == "shift" and isinstance(event.get("step"), int):
            try:
                found = get_format(event.get("to")) if event["step"] <= step else found
            except ValueError:
                return None
    return found if found.bits <= 16 else None


def _codes(counts: pd.DataFrame, operand: str, fmt: FloatFormat, runs: int) -> Chart | None:
    """Share of an operand's elements on each value of the format, in order, a ridge for each layer type."""
    code = counts["statistic"].map(lambda name: int(name.removeprefix("code_"), 16))
    counts = counts.assign(code=code)[code < 1 << fmt.bits]
    counts = counts.assign(number=fmt.values[counts["code"]])
    counts = counts[np.isfinite(counts["number"])]
    if counts.empty:
        return None
    values = fmt.finite_values
    totals = counts.groupby(["layer_type", "number"])["value"].sum()
    kinds = _kinds(totals.index.get_level_values(0))
    shares = {
        kind: (totals[kind] / totals[kind].sum()).reindex(values, fill_value=0.0).to_numpy(dtype=np.float64)
        for kind in kinds
    }
    data = pd.DataFrame({"place": range(len(values)), "value": values, **shares})
    said = "; ".join(
        f"{kind}: {int((share > 0).sum())} values in use, the most frequent {values[share.argmax()]:g} with "
        f"{words.percent(float(share.max()))}"
        for kind, share in shares.items()
    )

    def draw(sketch: Sketch) -> None:
        x = Axis(-0.5, len(values) - 0.5, 70, sketch.width - 10)
        up = 0.62 * INCH
        for row, (kind, share) in enumerate(shares.items()):
            base = (row + 1) * up
            top = float(share.max())
            boxes = [
                (x(at - 0.5), base - 0.85 * up * share[at] / top, x(at + 0.5), base) for at in np.flatnonzero(share)
            ]
            sketch.line([(x.start, base), (x.stop, base)], GRID, 0.6)
            sketch.rectangles(boxes, PALETTE[0])
            sketch.text(64, base - 0.42 * up, str(kind), size=8, anchor="end")
            sketch.text(64, base - 0.42 * up + 10, f"peak {words.percent(top)}", MUTED, size=7.5, anchor="end")
        parts = (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
        bottom = len(shares) * up
        for place in sorted({round(part * (len(values) - 1)) for part in parts}):
            text = f"{values[place]:.3g}".replace("-", "−")
            sketch.text(x(place), bottom + 13, text, MUTED, size=8, anchor="middle")
        label = f"the {len(values)} finite values of {fmt.label} in order (before scaling)"
        sketch.text(x.stop, bottom + 27, label, MUTED, size=8.5, anchor="end")

    whose = f"{runs} runs" if runs > 1 else "one run"
    step = int(counts["step"].max())
    return Chart(
        f"codes-{fmt.name}" if operand == "weight" else f"codes-{operand.replace('_', '-')}-{fmt.name}",
        f"Which values of {fmt.label} the {OPERAND_NAMES[operand]} use, by layer type",
        f"Share of the {OPERAND_NAMES[operand]} on each of the {len(values)} finite values at step {step} of {whose}. "
        f"{said}.",
        data,
        sketch=draw,
        height=0.62 * len(kinds) + 0.5,
    )


def heading(looks: pd.DataFrame, runs: int) -> list[Block]:
    """The section's head: whose looks these are, and at which steps."""
    whose = f"means over {runs} runs" if runs > 1 else "figures of one run"
    steps = looks["step"]
    text = f"{looks['step'].nunique()} looks from step {steps.min()} to {steps.max()}; {whose}."
    return [Heading("Health of the layers"), Paragraph(text)]


def note(run_ids: Sequence[Any]) -> str:
    """Whose figures a chart shows, in words."""
    return f"Mean over {len(run_ids)} runs." if len(run_ids) > 1 else f"Run {run_ids[0]}."
