"""The health of the layers: heat maps and curves over time, the last look in tables by subject, the codes in use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.config import LAYER_TYPES, OPERAND_NAMES
from altgrad.formats import FloatFormat, get_format
from altgrad.reports import columns as col
from altgrad.reports.heat_map import Levels, heat_map
from altgrad.runs import RunRecord
from altgrad.runs.pack import is_histogram
from altgrad.site import GRID, MUTED, PALETTE, Axis, Block, Chart, ChartBlock, Column, Sketch, Table, plot_axes
from altgrad.site.sketch import INCH

LOST = Levels(
    (float(np.nextafter(0.0, 1.0)), 0.001, 0.01, 0.05, 0.25),
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


class Figure(NamedTuple):
    """A figure of the layers that has a heat map, its id and panels, and what it is relative to."""

    identity: str
    title: str
    levels: Levels
    meaning: str
    panels: dict[str, str] = OPERAND_NAMES
    relative: str = ""


_RANK = "Effective rank of each weight relative to the first look."
_STALL = "Share of the proposed changes that left the stored code as it was."
FIGURES = {
    "underflow": Figure("underflow", "Underflow", LOST, "Fraction of nonzero elements that rounding turned into zero."),
    "overflow": Figure("overflow", "Overflow", LOST, "Fraction of nonzero elements beyond the format's largest value."),
    "sqnr_db": Figure("sqnr", "SQNR", SQNR, "Signal-to-quantization-noise ratio."),
    "stall_ratio": Figure("stall", "Stall ratio", STALL, _STALL, {"update": "optimizer's step"}),
    "effective_rank": Figure(
        "rank", "Effective rank", RANK, _RANK, {"weight": "weights"}, ", relative to the first look"
    ),
}
"""By the statistic of the records, in the order of pages."""


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


_ONE_DIGIT = partial(words.number, digits=1)
STATISTICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "amax": ("Amax", _short),
    "scale": ("Scale", _short),
    "norm_l2": ("Norm L2", _short),
    "norm_inf": ("Largest", _short),
    "zero": ("Zero", words.percent),
    "nonfinite": ("NaN, infinite", lambda value: f"{value:,.0f}"),
    "overflow": ("Overflow", words.percent),
    "underflow": ("Underflow", words.percent),
    "sqnr_db": ("SQNR (dB)", _ONE_DIGIT),
    "dead": ("Dead", words.percent),
    "codes_used": ("Codes used", words.percent),
    "code_entropy": ("Entropy (bits)", partial(words.number, digits=2)),
    "spectral_norm": ("Spectral norm", _short),
    "stable_rank": ("Stable rank", _ONE_DIGIT),
    "effective_rank": ("Effective rank", _ONE_DIGIT),
    "code_position": ("Code position", words.number),
    "grid_distance": ("Distance to the grid (ulp)", words.number),
    "stiffness_correlation": ("Correlation with S", words.number),
    "shadow_cosine": ("Cosine to unrounded", partial(words.number, digits=4)),
    "shadow_snr_db": ("SNR to unrounded (dB)", _ONE_DIGIT),
    "stall_ratio": ("Stall ratio", words.percent),
    "zero_update": ("No change proposed", words.percent),
    "ulps_rms": ("Step (ulps, rms)", _short),
    "ulps_0": ("0", words.percent),
    **{f"ulps_2^{power}": (f"below 2^{power}", words.percent) for power in (-6, -4, -2, 0, 2, 4)},
    "ulps_inf": ("2^4 or more", words.percent),
}
"""Title and text of each statistic in the tables of the last look."""
_OFTEN_ZERO = ("nonfinite", "overflow", "underflow", "dead", "zero", "stall_ratio", "zero_update")
"""Figures whose column says nothing where all of it is 0: the table's caption says it."""
_OF_OPERANDS = "amax scale nonfinite overflow underflow sqnr_db dead codes_used code_entropy"
_OF_WEIGHTS = "spectral_norm stable_rank effective_rank code_position grid_distance"
_OF_GRADIENTS = "norm_l2 norm_inf zero nonfinite stiffness_correlation shadow_cosine shadow_snr_db"
_OF_STEPS = "norm_l2 stall_ratio zero_update ulps_rms"
_OF_ULPS = " ".join(name for name in STATISTICS if name.startswith("ulps_") and name != "ulps_rms")
SUBJECTS = (
    ("", "Operands at the last look ({}), fractions of nonzero elements", tuple(OPERAND_NAMES), _OF_OPERANDS),
    ("-weights", "Weights at the last look ({})", ("weight",), _OF_WEIGHTS),
    ("-gradients", "Gradients of the weights at the last look ({})", ("gradient",), _OF_GRADIENTS),
    ("-step", "The optimizer's step at the last look ({})", ("update",), _OF_STEPS),
    ("-ulps", "How far that step moved the weights, in ulps: fractions of elements ({})", ("update",), _OF_ULPS),
)
"""The tables of the last look: end of the id, caption, operands, statistics."""


def over_time(looks: pd.DataFrame, run_ids: Sequence[str], prefix: str = "") -> tuple[list[str], list[Block]]:
    """Which figures are 0 in every layer at every look, and a heat map or curves for each of the others.

    Args:
        looks: what `ExperimentDataLoader.layer_history` found of the runs.
        run_ids: the runs, which the charts' descriptions name first.
        prefix: of the charts' ids, where a page has several runs.
    """
    if looks.empty:
        return [], []
    zero, blocks = [], list[Block]()
    note = f"Mean over {len(run_ids)} runs." if len(run_ids) > 1 else f"Run {run_ids[0]}."
    for statistic, figure in FIGURES.items():
        data = _of(looks, statistic, figure.panels)
        if figure.relative and len(data):
            first = data.drop_duplicates("layer").set_index("layer")["value"].replace(0.0, np.nan)
            data = data.assign(value=data["value"] / data["layer"].map(first))
        if len(data) and figure.levels.sign > 0 and not (data["value"] > 0).any():
            zero.append(figure.title.lower())
        elif len(data):
            blocks.append(by_layer(prefix + figure.identity, statistic, data, note))
    return zero, [*blocks, *_gradient_norms(looks, note, prefix)]


def by_layer(identity: str, statistic: str, data: pd.DataFrame, note: str, whose: str = "") -> ChartBlock:
    """A heat map of one of `FIGURES`: rows layer, operand, step, value; `whose` stands in its title, `note` below."""
    figure = FIGURES[statistic]
    title = f"{figure.title}{whose} by layer and step{figure.relative}"
    return ChartBlock(heat_map(identity, title, data, figure.levels, figure.panels, f"{figure.meaning} {note}"))


def last_look(loader: ExperimentDataLoader, run_ids: Sequence[str], last: pd.DataFrame) -> list[Block]:
    """The last recorded figures as tables by subject, and the codes in use; nothing without looks.

    `last` is what `ExperimentDataLoader.last_look` gives for these runs.
    """
    if last.empty:
        return []
    layers = list(dict.fromkeys([*last["layer"][last["operand"] == "weight"].unique(), *last["layer"].unique()]))
    histograms = code_histograms(loader, run_ids, last)
    last = last[~is_histogram(last)].assign(place=last["layer"].map(layers.index))
    who = f"{f'mean over {len(run_ids)} runs' if len(run_ids) > 1 else 'one run'}, step {last['step'].max()}"
    tables = (_table(last, f"health{end}", caption.format(who), of, what) for end, caption, of, what in SUBJECTS)
    return [*histograms, *filter(None, tables)]


def code_histograms(
    loader: ExperimentDataLoader, run_ids: Sequence[str], last: pd.DataFrame | None = None
) -> list[ChartBlock]:
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
    blocks: list[ChartBlock] = []
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
    lines = zip(itertools.cycle(PALETTE), itertools.cycle(("", "6 2", "2 2", "7 2 2 2")), strict=False)
    styles = dict(zip(_kinds(data["layer_type"]), lines, strict=False))
    steps, last = data["step"], data[data["step"] == data["step"].max()].sort_values("value")
    absent = len(norms) - len(data)
    description = (
        f"{note} L2 norm of the gradient of each of {data['layer'].nunique()} weights, before clipping, from step "
        f"{steps.min()} to {steps.max()}. At the end the largest is {last['layer'].iloc[-1]} "
        f"{last['value'].iloc[-1]:.3g}, the smallest {last['layer'].iloc[0]} {last['value'].iloc[0]:.3g}."
        f"{f' {absent} norms that are 0 or not finite are left out.' if absent else ''}"
    ).strip()

    def draw(sketch: Sketch) -> None:
        x = Axis(float(steps.min()), float(steps.max()), 54, sketch.width - 10)
        low, high = float(data["value"].min()), float(data["value"].max())
        y = Axis(low / 1.2, high * 1.2, sketch.height - 34, 34, log=True)
        plot_axes(sketch, x, y, "step", "")
        for (kind, _), line in data.groupby(["layer_type", "layer"], sort=False, observed=True):
            points = ((x(step), y(value)) for step, value in zip(line["step"], line["value"], strict=True))
            sketch.line(points, styles[str(kind)][0], 1.1, styles[str(kind)][1])
        sketch.text(2, 14, "gradient norm", MUTED)
        place = 82.0
        for name, (colour, dash) in styles.items():
            sketch.line([(place, 11), (place + 20, 11)], colour, 1.6, dash)
            sketch.text(place + 24, 14, name, colour)
            place += 42 + 4.9 * len(name)

    title = "Gradient norm of each layer by step"
    return [ChartBlock(Chart(f"{prefix}gradients", title, description, data, sketch=draw, height=2.8))]


def _kinds(layer_types: Iterable[str]) -> list[str]:
    """The layer types that occur, those of the model in its order."""
    order = {str(kind): number for number, kind in enumerate(LAYER_TYPES)}
    return sorted(set(layer_types), key=lambda kind: (order.get(kind, len(order)), kind))


def _table(last: pd.DataFrame, identity: str, caption: str, operands: Sequence[str], of: str) -> Table | None:
    """One subject of the last look: only the columns and rows that were recorded."""
    found, steps, some = dict[tuple[int, int], dict[str, Any]](), dict[str, int](), set[str]()
    names, statistics = ["layer", "layer_type", "operand"], of.split()
    mine = last[last["operand"].isin(operands) & last["statistic"].isin(statistics)]
    cells = mine[[*names, "place", "statistic", "step", "value"]]
    for *named, row, statistic, step, value in zip(*(cells[name].tolist() for name in cells), strict=True):
        place = (operands.index(named[2]), row)
        found.setdefault(place, dict(zip(names, named, strict=True)))[statistic] = value
        steps[statistic] = max(step, steps.get(statistic, 0))
        some |= {statistic} if value != 0 else set()
    recorded, newest = [name for name in statistics if name in steps], int(last["step"].max())
    zero = [name for name in recorded if name in _OFTEN_ZERO and name not in some]
    if len(recorded) == len(zero):
        return None

    def column(name: str) -> Column:
        title, text = STATISTICS[name]
        later = f" (step {steps[name]})" if steps[name] != newest else ""
        return col.of(title + later, lambda row: None if col.missing(row.get(name)) else text(row[name]), right=True)

    kind = col.text("Operand", "operand", OPERAND_NAMES) if len(operands) > 1 else col.text("Type", "layer_type")
    absent = f". {words.names([STATISTICS[name][0] for name in zero])}: 0 everywhere" if zero else ""
    columns = (col.text("Layer", "layer"), kind, *(column(name) for name in recorded if name not in zero))
    return col.table([found[place] for place in sorted(found)], columns, caption + absent, identity)


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
    codes = counts["statistic"].map(lambda name: int(name.removeprefix("code_"), 16))
    counts = counts[codes < 1 << fmt.bits]
    counts = counts.assign(number=fmt.values[codes[counts.index]])
    counts = counts[np.isfinite(counts["number"])]
    if counts.empty:
        return None
    values, totals = fmt.finite_values, counts.groupby(["layer_type", "number"])["value"].sum()
    shares = {
        kind: (totals[kind] / totals[kind].sum()).reindex(values, fill_value=0.0).to_numpy(dtype=np.float64)
        for kind in _kinds(totals.index.get_level_values(0))
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
            base, top = (row + 1) * up, float(share.max())
            sketch.line([(x.start, base), (x.stop, base)], GRID, 0.6)
            heights = ((at, base - 0.85 * up * share[at] / top) for at in np.flatnonzero(share))
            sketch.rectangles(((x(at - 0.5), height, x(at + 0.5), base) for at, height in heights), PALETTE[0])
            sketch.text(64, base - 0.42 * up, str(kind), size=8, anchor="end")
            sketch.text(64, base - 0.42 * up + 10, f"peak {words.percent(top)}", MUTED, size=7.5, anchor="end")
        bottom = len(shares) * up
        for place in sorted({round(part / 8 * (len(values) - 1)) for part in range(9)}):
            text = f"{values[place]:.3g}".replace("-", "−")
            sketch.text(x(place), bottom + 13, text, MUTED, size=8, anchor="middle")
        label = f"the {len(values)} finite values of {fmt.label} in order (before scaling)"
        sketch.text(x.stop, bottom + 27, label, MUTED, size=8.5, anchor="end")

    name, whose = OPERAND_NAMES[operand], f"{runs} runs" if runs > 1 else "one run"
    return Chart(
        f"codes-{fmt.name}" if operand == "weight" else f"codes-{operand.replace('_', '-')}-{fmt.name}",
        f"Which values of {fmt.label} the {name} use, by layer type",
        f"Share of the {name} on each of the {len(values)} finite values at step {int(counts['step'].max())} of "
        f"{whose}. {said}.",
        data,
        sketch=draw,
        height=0.62 * len(shares) + 0.5,
    )
