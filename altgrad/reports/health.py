"""The health of the layers: what the script of an arm's page draws of it, and the charts that other pages show.

`docs/javascripts/layers.js` draws what `over_time`, `last_look` and `codes` give. They have the words beside the
numbers, so that titles, levels and columns are told here alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from altgrad.analysis import words
from altgrad.analysis.loader import ExperimentDataLoader, Looks, states_formats
from altgrad.config import LAYER_TYPES, OPERAND_NAMES, OPERANDS, operand_of
from altgrad.formats import FloatFormat, get_format
from altgrad.reports.curves import column, plain
from altgrad.reports.document import macros_of
from altgrad.reports.format_styles import format_style
from altgrad.reports.heat_map import Levels, heat_map
from altgrad.runs import RunRecord
from altgrad.runs.diagnosis import coverage_of
from altgrad.runs.pack import is_histogram
from altgrad.site import GRID, MUTED, Axis, Chart, ChartBlock, Sketch
from altgrad.site.sketch import INCH
from altgrad.text import CELL_LIMIT, shorten, visible

LOST = Levels(
    (float(np.nextafter(0.0, 1.0)), 0.001, 0.01, 0.05, 0.25),
    ("0", "below 0.1%", "below 1%", "below 5%", "below 25%", "25% or more"),
    words.percent,
)
SQNR = Levels(
    (35.0, 30.0, 25.0, 20.0, 15.0),
    ("35 dB or more", "30 to 35", "25 to 30", "20 to 25", "15 to 20", "below 15"),
    lambda value: f"{words.number(value, 1)} dB",
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
    """A figure of the layers over time, drawn as a heat map: its id, words and panels, and what it is relative to.

    ``form`` is how the script writes its values, as in `STATISTICS`.
    """

    identity: str
    title: str
    levels: Levels
    form: str = "percent"
    panels: dict[str, str] = OPERAND_NAMES
    relative: str = ""

    @property
    def meaning(self) -> str:
        """What it measures, in a sentence."""
        return str(macros_of("layers").meanings[self.identity])


FIGURES = {
    "underflow": Figure("underflow", "Underflow", LOST),
    "overflow": Figure("overflow", "Overflow", LOST),
    "sqnr_db": Figure("sqnr", "SQNR", SQNR, "dB"),
    "stall_ratio": Figure("stall", "Stall ratio", STALL, panels={"update": "optimizer's step"}),
    "effective_rank": Figure(
        "rank", "Effective rank", RANK, panels={"weight": "weights"}, relative=", relative to the first look"
    ),
}
"""By the statistic of the records, in the order of pages."""
_GRADIENTS = {"id": "gradients", "title": "Gradient norm of each layer by step", "form": "short"}
"""What is drawn as curves, a line a layer."""

STATISTICS = {
    "amax": ("Amax", "short"),
    "scale": ("Scale", "short"),
    "norm_l2": ("Norm L2", "short"),
    "norm_inf": ("Largest", "short"),
    "zero": ("Zero", "percent"),
    "nonfinite": ("NaN, infinite", "0"),
    "overflow": ("Overflow", "percent"),
    "underflow": ("Underflow", "percent"),
    "sqnr_db": ("SQNR (dB)", "1"),
    "dead": ("Dead", "percent"),
    "codes_used": ("Codes used", "percent"),
    "code_entropy": ("Entropy (bits)", "2"),
    "spectral_norm": ("Spectral norm", "short"),
    "stable_rank": ("Stable rank", "1"),
    "effective_rank": ("Effective rank", "1"),
    "code_position": ("Code position", "3"),
    "grid_distance": ("Distance to the grid (ulp)", "3"),
    "stiffness_correlation": ("Correlation with S", "3"),
    "shadow_cosine": ("Cosine to unrounded", "4"),
    "shadow_snr_db": ("SNR to unrounded (dB)", "1"),
    "stall_ratio": ("Stall ratio", "percent"),
    "zero_update": ("No change proposed", "percent"),
    "ulps_rms": ("Step (ulps, rms)", "short"),
    "ulps_0": ("0", "percent"),
    **{f"ulps_2^{power}": (f"below 2^{power}", "percent") for power in (-6, -4, -2, 0, 2, 4)},
    "ulps_inf": ("2^4 or more", "percent"),
}
"""Title and form of each statistic in the tables of the last look: as a percentage, short, or with so many decimals."""
_OFTEN_ZERO = ("nonfinite", "overflow", "underflow", "dead", "zero", "stall_ratio", "zero_update")
"""Figures whose column says nothing where all of it is 0: the table's caption says it."""
_OF_OPERANDS = ("amax", "scale", "nonfinite", "overflow", "underflow", "sqnr_db", "dead", "codes_used", "code_entropy")
_OF_WEIGHTS = ("spectral_norm", "stable_rank", "effective_rank", "code_position", "grid_distance")
_OF_GRADIENTS = ("norm_l2", "norm_inf", "zero", "nonfinite", "stiffness_correlation", "shadow_cosine", "shadow_snr_db")
_OF_STEPS = ("norm_l2", "stall_ratio", "zero_update", "ulps_rms")
_OF_ULPS = tuple(name for name in STATISTICS if name.startswith("ulps_") and name != "ulps_rms")
SUBJECTS = (
    ("", tuple(OPERAND_NAMES), _OF_OPERANDS),
    ("-weights", ("weight",), _OF_WEIGHTS),
    ("-gradients", ("gradient",), _OF_GRADIENTS),
    ("-step", ("update",), _OF_STEPS),
    ("-ulps", ("update",), _OF_ULPS),
)
"""The tables of the last look: end of the id, operands, statistics."""


_OF_ROUNDING = ("scale", "overflow", "underflow", "sqnr_db")
"""Figures that say nothing of an operand that is not rounded."""


def unrounded(loader: ExperimentDataLoader, arm: str, last: pd.DataFrame) -> frozenset[tuple[str, str]]:
    """The (layer, operand) of the last look of an arm's runs that are not rounded, by their config and their records.

    A weight that is not has gradients and updates that are not a quantized layer's either.
    """
    config = loader.config(arm)
    coverage = coverage_of(loader.records[loader.runs.loc[loader.runs["arm"] == arm, "run_id"].iloc[0]])
    wide, stated = set(coverage.wide if coverage else ()), states_formats(config)
    found = set()
    for layer, kind, operand in last[["layer", "layer_type", "operand"]].drop_duplicates().itertuples(index=False):
        cast = "weight" if operand in ("gradient", "update") else operand
        named = operand_of(cast) in OPERANDS and stated
        if layer in wide or (named and not config.rounds(layer, kind, cast)):
            found.add((layer, operand))
    return frozenset(found)


def of_rounding(looks: pd.DataFrame, left: frozenset[tuple[str, str]]) -> pd.DataFrame:
    """`looks` without the figures of rounding of what is not rounded."""
    if not left or looks.empty:
        return looks
    places = zip(looks["layer"].tolist(), looks["operand"].tolist(), strict=True)
    return looks[~(looks["statistic"].isin(_OF_ROUNDING) & np.array([place in left for place in places]))]


def last_rounded(loader: ExperimentDataLoader, arm: str, run_ids: Iterable[str]) -> pd.DataFrame:
    """The last look of some of an arm's runs, without the figures of rounding of what is not rounded."""
    last = loader.last_look(run_ids)
    return of_rounding(last, unrounded(loader, arm, last))


def over_time(looks: pd.DataFrame) -> dict[str, Any]:
    """What `ExperimentDataLoader.layer_history` found of some runs, for the script: {steps, layers, zero, figures}.

    ``steps`` are those of all looks, ``layers`` [name, type] of each. A figure has its words, the levels of a heat map,
    the steps that have it, and for each panel its title and rows: one a layer of ``layers``, null where there is
    nothing, with a value a step. ``zero`` are those that are 0 in every layer at every look.
    """
    place, layers = pd.factorize(looks["layer"])
    types = dict(zip(looks["layer"].tolist(), looks["layer_type"].tolist(), strict=True))
    operands, statistics = looks["operand"].to_numpy(object), looks["statistic"].to_numpy(object)
    at, values = looks["step"].to_numpy(np.int64), looks["value"].to_numpy(np.float64)

    def cells(statistic: str, names: Iterable[str]) -> tuple[list[str], list[int], NDArray[np.float64]]:
        """The operands and steps that have a statistic, and its values [operand, layer, step]."""
        of = {name: np.flatnonzero((statistics == statistic) & (operands == name)) for name in names}
        of = {name: rows for name, rows in of.items() if len(rows)}
        steps = np.unique(at[np.concatenate([*of.values(), np.empty(0, np.int64)])])
        found = np.full((len(of), len(layers), len(steps)), np.nan)
        for panel, rows in enumerate(of.values()):
            found[panel, place[rows], np.searchsorted(steps, at[rows])] = values[rows]
        return list(of), steps.tolist(), found

    def panels(titles: Iterable[str], found: NDArray[np.float64]) -> list[Any]:
        """[title, rows] of each operand; null in place of a row without a value."""
        rows = ([None if row.count(None) == len(row) else row for row in each] for each in column(found))
        return [list(each) for each in zip(titles, rows, strict=True)]

    zero, figures = list[str](), list[dict[str, Any]]()
    for statistic, figure in FIGURES.items():
        levels, (names, steps, found) = figure.levels, cells(statistic, figure.panels)
        if figure.relative and found.size:
            first = np.take_along_axis(found, (~np.isnan(found)).argmax(axis=2)[..., np.newaxis], axis=2)
            found = found / np.where(first == 0, np.nan, first)
        if found.size and levels.sign > 0 and not (found > 0).any():
            zero.append(figure.title)
        elif np.isfinite(found).any():
            figures.append(
                {
                    "id": figure.identity,
                    "title": f"{figure.title} by layer and step{figure.relative}",
                    "note": figure.meaning,
                    "form": figure.form,
                    "edges": levels.edges,
                    "legend": levels.legend,
                    "missing": levels.missing,
                    "steps": steps,
                    "panels": panels([figure.panels[name] for name in names], found),
                }
            )
    names, steps, found = cells("norm_l2", ["gradient"])
    found = np.where(found > 0, found, np.nan)
    if np.isfinite(found).any():
        note = macros_of("layers").meanings["gradients"]
        figures.append({**_GRADIENTS, "note": note, "steps": steps, "panels": panels(["gradients"], found)})
    shown = [[_shown(layer), _shown(types[layer])] for layer in layers]
    return {"steps": np.unique(at).tolist(), "layers": shown, "zero": zero, "figures": figures}


def last_look(last: pd.DataFrame, runs: int, left: frozenset[tuple[str, str]] = frozenset()) -> list[dict[str, Any]]:
    """What `ExperimentDataLoader.last_look` found of so many runs, as tables by subject for the script.

    What is not rounded (`left`: layer and operand) is called so. A table has its columns, [title, form] each, and rows
    of a cell a column; only those that were recorded.
    """
    if last.empty:
        return []
    last = last[~is_histogram(last)]
    newest, cells = int(last["step"].max()), dict[tuple[str, str], dict[str, float]]()
    steps, types = dict[tuple[str, str], int](), dict[str, str]()
    names = ("layer", "layer_type", "operand", "statistic", "step", "value")
    for layer, kind, operand, statistic, step, value in zip(*(last[name].tolist() for name in names), strict=True):
        types.setdefault(layer, kind)
        cells.setdefault((operand, statistic), {})[layer] = value
        steps[operand, statistic] = max(step, steps.get((operand, statistic), 0))
    weights = (layer for (operand, _), found in cells.items() if operand == "weight" for layer in found)
    layers = list(dict.fromkeys([*weights, *types]))
    who = f"{f'mean over {runs} runs' if runs > 1 else 'one run'}, step {newest}"
    tables = []
    for end, operands, of in SUBJECTS:
        caption = macros_of("layers").captions[end]
        mine = {name: [operand for operand in operands if (operand, name) in cells] for name in of}
        recorded = [name for name, having in mine.items() if having]
        zero = [
            name
            for name in recorded
            if name in _OFTEN_ZERO and not any(any(cells[operand, name].values()) for operand in mine[name])
        ]
        shown = [name for name in recorded if name not in zero]
        if not shown:
            continue
        columns = [["Layer", ""], ["Operand" if len(operands) > 1 else "Type", ""]]
        for name in shown:
            step = max(steps[operand, name] for operand in mine[name])
            title, form = STATISTICS[name]
            columns.append([title + (f" (step {step})" if step != newest else ""), form])
        rows = []
        for operand in operands:
            for layer in layers:
                if any(layer in cells.get((operand, name), ()) for name in recorded):
                    kind = OPERAND_NAMES[operand] if len(operands) > 1 else _shown(types[layer])
                    kind += ", not quantized" if (layer, operand) in left else ""
                    figures = [plain(cells.get((operand, name), {}).get(layer)) for name in shown]
                    rows.append([_shown(layer), kind, *figures])
        absent = f". {words.names([STATISTICS[name][0] for name in zero])}: 0 everywhere" if zero else ""
        tables.append({"id": f"health{end}", "caption": caption.format(who) + absent, "columns": columns, "rows": rows})
    return tables


class Codes(NamedTuple):
    """How an operand's elements lie on the finite values of its format at the last look that counted them."""

    operand: str
    fmt: FloatFormat
    runs: int
    step: int
    shares: dict[str, NDArray[np.float64]]
    """For each layer type, the share on each of `FloatFormat.finite_values`."""

    @property
    def identity(self) -> str:
        """Of its chart."""
        of = "" if self.operand == "weight" else f"{self.operand.replace('_', '-')}-"
        return f"codes-{of}{self.fmt.name}"

    @property
    def title(self) -> str:
        """Of its chart."""
        return f"Which values of {self.fmt.label} the {OPERAND_NAMES[self.operand]} use, by layer type"

    @property
    def about(self) -> str:
        """What the shares are of."""
        said = macros_of("layers").codes
        return str(said(OPERAND_NAMES[self.operand], len(self.fmt.finite_values), self.step, self.runs)).strip()


def codes(loader: ExperimentDataLoader, run_ids: Sequence[str], looks: Looks, last: pd.DataFrame) -> Iterator[Codes]:
    """Which codes were in use at the last look that counted them, for each operand and format (runs shift).

    `looks` and `last` are those of all the runs.
    """
    every, run = looks
    if every.empty:
        return
    counted = is_histogram(every).to_numpy()
    steps, operands, run = every["step"].to_numpy()[counted], every["operand"].array[counted], run[counted]
    found: dict[tuple[str, FloatFormat], list[str]] = {}
    for operand in OPERAND_NAMES:
        own = operands == operand
        newest = np.full(len(run_ids), -1)
        np.maximum.at(newest, run[own], steps[own])
        for run_id, step in zip(run_ids, newest.tolist(), strict=True):
            fmt = _format(loader.records[run_id], operand, step) if step >= 0 else None
            if fmt is not None:
                found.setdefault((operand, fmt), []).append(run_id)
    for (operand, fmt), ids in found.items():
        looked = last if len(ids) == len(run_ids) else loader.last_look(ids)
        counts = looked[is_histogram(looked) & (looked["operand"] == operand)]
        shares = _shares(counts, fmt)
        if shares:
            yield Codes(operand, fmt, len(ids), int(counts["step"].max()), shares)


def _shares(counts: pd.DataFrame, fmt: FloatFormat) -> dict[str, NDArray[np.float64]]:
    """The counts of codes of a last look as shares of the format's finite values; those of NaN are left out."""
    code = np.array([int(name.removeprefix("code_"), 16) for name in counts["statistic"].tolist()], np.int64)
    number = np.where(code < 1 << fmt.bits, fmt.values[np.minimum(code, (1 << fmt.bits) - 1)], np.nan)
    finite, types = np.isfinite(number), counts["layer_type"].to_numpy(object)
    place, value = np.searchsorted(fmt.finite_values, number), counts["value"].to_numpy(np.float64)
    shares = {}
    for kind in _kinds(types[finite]):
        own = finite & (types == kind)
        total = np.bincount(place[own], value[own], len(fmt.finite_values))
        shares[kind] = total / total.sum()
    return shares


def codes_value(found: Iterable[Codes]) -> list[dict[str, Any]]:
    """`codes` for the script: [{id, title, note, colour, values, shares: [[layer type, a share a value]]}]."""
    return [
        {
            "id": each.identity,
            "title": each.title,
            "note": each.about,
            "colour": format_style(each.fmt.name).variable,
            "values": column(each.fmt.finite_values),
            "shares": [[_shown(kind), column(share)] for kind, share in each.shares.items()],
        }
        for each in found
    ]


def _shown(name: str) -> str:
    """A name from a record as the script shows it: without control characters, and not without end."""
    return shorten(visible(name), CELL_LIMIT)


def by_layer(identity: str, statistic: str, data: pd.DataFrame, note: str) -> ChartBlock:
    """A heat map of one of `FIGURES`: rows layer, operand, step, value; `note` stands below."""
    figure = FIGURES[statistic]
    title = f"{figure.title} by layer and step{figure.relative}"
    return ChartBlock(heat_map(identity, title, data, figure.levels, figure.panels, f"{figure.meaning} {note}"))


def code_histograms(loader: ExperimentDataLoader, run_ids: Sequence[str]) -> list[ChartBlock]:
    """A chart of each of the `codes` of some runs."""
    looks = loader.looks(run_ids)
    return [ChartBlock(_ridges(found)) for found in codes(loader, run_ids, looks, looks.last())]


def _kinds(layer_types: Iterable[str]) -> list[str]:
    """The layer types that occur, those of the model in its order."""
    order = {str(kind): number for number, kind in enumerate(LAYER_TYPES)}
    return sorted(set(layer_types), key=lambda kind: (order.get(kind, len(order)), kind))


def _format(record: RunRecord, operand: str, step: int) -> FloatFormat | None:
    """The format of an operand at a step: the config's, or the one that a recorded shift changed it to."""
    found = get_format(record.config.cast(operand)[0])
    for event in record.run["events"]:
        if isinstance(event, dict) and event.get("kind") == "shift" and isinstance(event.get("step"), int):
            try:
                found = get_format(event.get("to")) if event["step"] <= step else found
            except ValueError:
                return None
    return found if found.bits <= 16 else None


def _ridges(found: Codes) -> Chart:
    """Share of an operand's elements on each value of the format, in order, a ridge for each layer type."""
    fmt, shares, values = found.fmt, found.shares, found.fmt.finite_values
    colour = format_style(fmt.name).colour
    data = pd.DataFrame({"place": range(len(values)), "value": values, **shares})
    said = [
        f"{kind}: {int((share > 0).sum())} values in use, "
        f"the most frequent {words.figure(values[share.argmax()])} with {words.percent(float(share.max()))}"
        for kind, share in shares.items()
    ]

    def draw(sketch: Sketch) -> None:
        x = Axis(-0.5, len(values) - 0.5, 70, sketch.width - 10)
        up = 0.62 * INCH
        for row, (kind, share) in enumerate(shares.items()):
            base, top = (row + 1) * up, float(share.max())
            sketch.line([(x.start, base), (x.stop, base)], GRID, 0.6)
            heights = ((at, base - 0.85 * up * share[at] / top) for at in np.flatnonzero(share))
            with sketch.told(said[row]):
                sketch.rectangles(((x(at - 0.5), height, x(at + 0.5), base) for at, height in heights), colour)
            sketch.text(64, base - 0.42 * up, str(kind), anchor="end")
            sketch.text(64, base - 0.42 * up + 11, f"peak {words.percent(top)}", MUTED, anchor="end")
        bottom = len(shares) * up
        for place in sorted({round(part / 8 * (len(values) - 1)) for part in range(9)}):
            text = words.figure(values[place], ".5g")
            sketch.text(x(place), bottom + 13, text, MUTED, anchor="middle")
        label = f"the {len(values)} finite values of {fmt.label} in order (before scaling)"
        sketch.text(x.stop, bottom + 27, label, MUTED, anchor="end")

    description, height = f"{found.about} {'; '.join(said)}.", 0.62 * len(shares) + 0.5
    return Chart(found.identity, found.title, description, data, sketch=draw, height=height)
