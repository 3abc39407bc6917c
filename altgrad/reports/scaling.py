"""How the cost of a format scales, docs/reports/scaling.md: the ladder, its law, its predictions, and a calculator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import scaling, words
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.scaling import Findings, Fit, Points, asked, best_rates, findings, outcome, swept
from altgrad.analysis.statistics import MARGIN, MIN_PAIRS
from altgrad.reports import charts
from altgrad.reports import columns as col
from altgrad.reports.charts import Style
from altgrad.reports.citation import registrations
from altgrad.reports.curves import compact, plain
from altgrad.reports.document import Content, content_of, document_page, document_source
from altgrad.site import GRID, MUTED, PALETTE, Axis, Block, Chart, ChartBlock, Download, Page, Table
from altgrad.site.document import Part
from altgrad.site.sketch import INCH, Sketch, number_text
from altgrad.studies import FP32_RATE, LADDER, LADDER_FORMS, LADDER_STEPS, MUP_WIDTH

PATH = "reports/scaling"
REGISTRATION = "method/preregistration-ladder"
SIZES_ASKED, TOKENS_ASKED = (1e5, 1e6, 1e7), (1e6, 1e7)
"""Of the table that stands where there is no JavaScript."""


def scaling_page(loader: ExperimentDataLoader) -> Page:
    """The page, from the records of `loader`; what is not recorded is pending."""
    page = document_page(loader, PATH, *content_of(loader, _content))
    found = loader.memo(findings)
    if found.law is None:
        return page
    data = Download("law.json", compact(plain(calculator(found))), listed=False)
    return replace(page, downloads=(*page.downloads, data))


def _content(loader: ExperimentDataLoader) -> Content:
    found, sweeps = loader.memo(findings), loader.memo(swept)
    best = best_rates(sweeps)
    law, cells = found.law, found.fitted.cells
    held = found.held["study"] == "ladder-held-out"
    committed = registrations(document_source(REGISTRATION))
    seen = outcome(found)
    values: dict[str, Any] = {
        "cells": len(cells),
        "seeds": sorted({*cells["n"]}),
        "sizes": _ends(cells, "parameters"),
        "lengths": _ends(cells, "tokens"),
        "law": law and {name: law.exponent(name) for name in ("a", "b")},
        "bit": (bits := found.fits.get("bits")) and [math.exp(value) for value in bits.exponent("bit")],
        "misfit": law and law.widening(),
        "why": found.why,
        "left_out_cells": found.recorded.left_out,
        "have": {study: found.have(study) for study in scaling.SETS},
        "expected": found.recorded.expected,
        "complete": {study: found.complete(study) for study in scaling.SETS},
        "seen": seen,
        "marks": seen.marks,
        "held": _held_rows(found, "ladder-held-out"),
        "large": _held_rows(found, "ladder-large"),
        "pairs": MIN_PAIRS,
        "band": scaling.BAND,
        "least": scaling.LEAST,
        "steps": LADDER_STEPS,
        "base_width": MUP_WIDTH,
        "grey": int(scaling.GREY),
        "refused": int(scaling.REFUSED),
        "bounds": _bounds(found),
        "registered": committed[0] if committed else None,
        "fit_committed": committed[1] if len(committed) > 1 else None,
        "everywhere": len(found.everywhere),
        "swept": len(sweeps),
        "sweeps": (len(best), 2 * len(LADDER)),
        "forms": {*sweeps["form"]},
        "by_width": scaling.by_width(sweeps),
        "by_width_form": scaling.RULED,
        "base_rate": FP32_RATE,
        "base_best": next((best.get((size.name, scaling.RULED)) for size in LADDER if size.dim == MUP_WIDTH), None),
        "loss": found.loss and {"alpha": found.loss.exponent("alpha"), "beta": found.loss.exponent("beta")},
        "law_names": {key: _NAMES[key] for key in scaling.LAWS},
    }
    parts: dict[str, Part] = {
        "by size": lambda: _multiples("by-size", found, "parameters"),
        "by data": lambda: _multiples("by-data", found, "tokens"),
        "exponents": lambda: _exponents(found),
        "predictions": lambda: _predictions(found.held[held & found.held["counted"]], "predictions"),
        "too small": lambda: _predictions(found.held[held & ~found.held["counted"]], "too-small"),
        "large": lambda: _predictions(found.held[found.held["study"] == "ladder-large"], "large"),
        "models": lambda: [_models(found)] if found.fits else [],
        "cells": lambda: [_cells(found)] if len(cells) else [],
        "everywhere": lambda: [_everywhere(found)] if len(found.everywhere) else [],
        "rates": lambda: [_rates(sweeps)] if len(sweeps) else [],
        "calculator": lambda: [_asked(found)] if law else [],
    }
    arms = {*found.recorded.runs.get("arm", ())}
    return Content(values, parts, lambda: arms).kept()


_NAMES = {
    "law": "c Nᵃ Dᵇ",
    "bits": "the same, c by mantissa bits",
    "constant": "c",
    "size": "c Nᵃ",
    "data": "c Dᵇ",
    "effective N": "fewer effective parameters: c N^−α",
    "D over N": "c Dᵝ N^−α",
    "effective N and D": "fewer parameters and tokens: c N^−α + d D^−β",
}
"""What laws are called; α and β are FP32's own."""


def _ends(cells: pd.DataFrame, name: str) -> list[int]:
    return [int(cells[name].min()), int(cells[name].max())] if len(cells) else []


def _held_rows(found: Findings, study: str) -> list[dict[str, Any]]:
    return list(_labelled(found.held[found.held["study"] == study]).to_dict("records"))


def _bounds(found: Findings) -> list[dict[str, Any]]:
    """Of the arms whose gaps are below the margin in every cell: how high they may be, by the intervals."""
    rows = []
    for form, cells in found.fitted.cells.groupby("form", sort=False):
        if (cells["gap"] < MARGIN).all():
            rows.append({"label": LADDER_FORMS[str(form)][2], "high": float(cells["high"].max())})
    return rows


# Charts


def _multiples(identity: str, found: Findings, over: str) -> list[Block]:
    if found.law is None:
        return []
    return [ChartBlock(_panels(identity, found.fitted.cells, found.law, over))]


def _panels(identity: str, cells: pd.DataFrame, law: Fit, over: str) -> Chart:
    """A panel an arm: its gaps with their 95% intervals, and the law with its band, a colour a size or length."""
    title, other = ("Gaps over size", "tokens") if over == "parameters" else ("Gaps over data", "parameters")
    forms = [form for form in LADDER_FORMS if form in set(cells["form"])]
    colours = dict(zip(sorted({*cells[other]}), PALETTE, strict=False))
    width, height, across = 144.0, 70.0, 3
    curve = np.geomspace(cells[over].min(), cells[over].max(), 24)

    def draw(sketch: Sketch) -> None:
        for number, (value, colour) in enumerate(colours.items()):
            sketch.text(40 + 105 * number, 12, f"{words.figure(value, ',.0f')} {other}", colour, bold=True)
        for number, form in enumerate(forms):
            own = cells[cells["form"] == form]
            left, top = 40 + number % across * (width + 24), 42 + number // across * (height + 48)
            x = Axis(float(curve[0]), float(curve[-1]), left + 8, left + width - 8, log=True)
            y = Axis(min(float(own["low"].min()), 0.0), float(own["high"].max()), top + height, top)
            sketch.text(left, top - 8, LADDER_FORMS[form][2], bold=True)
            for mark in y.marks(3):
                sketch.line([(left, y(mark)), (left + width, y(mark))], GRID, 0.6)
                sketch.text(left - 4, y(mark) + 3, number_text(mark), MUTED, anchor="end")
            for place, anchor in ((curve[0], "start"), (curve[-1], "end")):
                at = words.figure(place, ",.0f")
                sketch.text(x(float(place)), y.start + 13, at, MUTED, anchor=anchor)  # type: ignore[arg-type]
            for value, colour in colours.items():
                here = own[own[other] == value]
                if len(here):
                    _curve(sketch, law, form, over, value, curve, (x, y), colour)
                for row in here.itertuples():
                    across_at = x(float(getattr(row, over)))
                    told = f"{LADDER_FORMS[form][2]}, {row.parameters:,} parameters, {row.tokens:,} tokens"
                    with sketch.told(f"{told}: {words.number(row.gap, sign=True)} {words.interval(row.low, row.high)}"):
                        sketch.line([(across_at, y(row.low)), (across_at, y(row.high))], colour, 1.2)
                        sketch.dots([(across_at, y(row.gap))], colour, 2.2)

    rows = -(-len(forms) // across)
    size = (48 + rows * (height + 48)) / INCH
    said = "; ".join(
        f"{LADDER_FORMS[row.form][2]} at {row.parameters:,} and {row.tokens:,}: {words.number(row.gap, sign=True)}"
        for row in cells.itertuples()
    )
    about = f"Dots are gaps, lines the law. {said}."
    data = cells[["form", "size", "steps", "parameters", "tokens", "n", "gap", "low", "high"]]
    return Chart(identity, title, about, data, sketch=draw, height=size)


def _curve(
    sketch: Sketch, law: Fit, form: str, over: str, value: float, curve: Any, axes: tuple[Axis, Axis], colour: str
) -> None:
    fixed = np.full(len(curve), float(value))
    points = Points(np.full(len(curve), form), *((curve, fixed) if over == "parameters" else (fixed, curve)))
    gaps, half = law(points), law.quantile(0.95) * law.error(points)
    x, y = axes
    inside = [(x(float(at)), float(gap), float(each)) for at, gap, each in zip(curve, gaps, half, strict=True)]

    def place(value: float) -> float:
        return y(min(max(value, y.low), y.high))

    above = [(at, place(gap + each)) for at, gap, each in inside]
    below = [(at, place(gap - each)) for at, gap, each in reversed(inside)]
    sketch.area([*above, *below], colour)
    sketch.line([(at, place(gap)) for at, gap, _ in inside], colour, 1.2)


_STYLES = {"a": Style(PALETTE[0], "o", "of size, a"), "b": Style(PALETTE[1], "s", "of data, b")}


def _exponents(found: Findings) -> list[Block]:
    """The law's exponents, those of each arm by itself, and what published forms say with FP32's own exponents."""
    rows: list[dict[str, Any]] = []

    def add(line: str, rule: str, value: float, low: float, high: float) -> None:
        rows.append({"line": line, "rule": rule, "difference": value, "low": low, "high": high})

    fits = ({"all arms": found.law} if found.law else {}) | {
        LADDER_FORMS[form][2]: own for form, own in found.alone.items()
    }
    for line, own in fits.items():
        ends = {name: own.exponent(name) for name in ("a", "b")}
        if max(high - low for _, low, high in ends.values()) < 3:  # of an arm without a gap they are anything
            for name, each in ends.items():
                add(line, name, *each)
    if found.loss is not None:
        alpha, low, high = found.loss.exponent("alpha")
        for line, of_data in (("2411.04330: −α, 0", (0, 0, 0)), ("2501.02423: −α, β", found.loss.exponent("beta"))):
            add(line, "a", -alpha, -high, -low)
            add(line, "b", *of_data)
    if not rows:
        return []
    data = pd.DataFrame(rows)
    order = list(dict.fromkeys(data["line"]))
    chart = charts.grouped_forest(
        "exponents", "", "", data.drop(columns="line"), list(data["line"]), order, _STYLES, "no change", "exponent"
    )
    return [ChartBlock(chart)]


# Tables


def _figure(title: str, key: str) -> Any:
    return col.of(title, lambda row: None if col.missing(row[key]) else f"{int(row[key]):,}", right=True)


def _where(title: str = "Arm") -> Sequence[Any]:
    return (col.arm(title, "label"), _figure("Parameters", "parameters"), _figure("Tokens", "tokens"))


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(label=[LADDER_FORMS[form][2] for form in rows["form"]])


def _predictions(held: pd.DataFrame, identity: str) -> list[Block]:
    """What was predicted of some cells and what came; misses first, then what counts."""
    rows = _labelled(held)
    if rows.empty:
        return []
    rows = rows.assign(missed=rows["counted"] & rows["gap"].notna() & ~rows["inside"].astype(bool))
    rows = rows.sort_values(["missed", "counted", "predicted"], ascending=False, ignore_index=True)
    sizes = (_figure("Parameters", "parameters"),) if rows["size"].nunique() > 1 else ()
    columns = (
        col.arm("Arm", "label"),
        *sizes,
        _figure("Steps", "steps"),
        col.signed("Predicted gap", "predicted"),
        col.interval("90% interval", "low", "high"),
        col.signed("What came", "gap"),
        col.of("Inside", _inside),
        col.percent("Band of the law", "band"),
    )
    return [col.table(rows, columns, id=identity)]


def _inside(row: Mapping[Any, Any]) -> str:
    if not row["counted"]:
        return "bound"
    return "pending" if col.missing(row["gap"]) else "yes" if row["inside"] else "no"


def _models(found: Findings) -> Table:
    columns = (
        col.text("Gap", "key", _NAMES),
        col.of("As in", lambda row: f"arXiv {row['source']}" if row["source"] else None),
        col.count("Fitted", "parameters"),
        col.number("Misfit (chi² per degree)", "misfit", 2),
        col.percent("Error, largest size left out", "largest"),
        col.percent("Error, held-out size", "held_out"),
        col.text("Why not", "why"),
    )
    rows = found.models.sort_values(["held_out", "largest"], ignore_index=True)
    return col.table(rows, columns, id="models")


def _cells(found: Findings) -> Table:
    rows = _labelled(found.fitted.cells)
    if found.law is not None:
        predicted = found.law(Points.of(rows))
        error = np.sqrt(np.diag(found.fitted.covariance))
        rows = rows.assign(predicted=predicted, residual=(rows["gap"] - predicted) / error)
    else:
        rows = rows.assign(predicted=math.nan, residual=math.nan)
    columns = (
        *_where(),
        col.signed("Gap", "gap"),
        col.interval(),
        col.count("Pairs", "n"),
        col.signed("The law", "predicted"),
        col.signed("Residual, in standard errors", "residual", 1),
    )
    return col.table(rows, columns, id="cells")


def _everywhere(found: Findings) -> Table:
    columns = (*_where(), col.signed("Gap", "gap"), col.interval(), col.count("Pairs", "n"))
    return col.table(_labelled(found.everywhere), columns, id="everywhere")


def _rates(sweeps: pd.DataFrame) -> Table:
    best = {(*key, rate) for key, rate in best_rates(sweeps).items()}
    columns = (
        col.text("Size", "size"),
        col.text("Arm", "form", {"by width": f"{scaling.RULED}, rate by width (muP)"}),
        col.general("Learning rate", "rate"),
        col.number("Mean loss", "loss", 4),
        col.count("Seeds", "n"),
        col.of("", lambda row: "best" if (row["size"], row["form"], row["rate"]) in best else None),
    )
    return col.table(sweeps.sort_values(["size", "form", "rate"], ignore_index=True), columns, id="rates")


# The calculator


def _asked(found: Findings) -> Table:
    """The calculator's answers to some questions, for readers without JavaScript."""
    rows = []
    for form in found.law.forms if found.law else ():
        for parameters in SIZES_ASKED:
            for tokens in TOKENS_ASKED:
                answer = asked(found, form, parameters, tokens)
                where = {"label": LADDER_FORMS[form][2], "parameters": parameters, "tokens": tokens}
                rows.append(where | answer._asdict())
    columns = (
        col.text("Arm", "label"),
        _figure("Parameters", "parameters"),
        _figure("Tokens", "tokens"),
        col.signed("Predicted gap", "gap"),
        col.interval("95% interval"),
        col.percent("Share of the compute", "share"),
        col.of("Outside the data", _beyond, right=True),
    )
    return col.table(rows, columns, id="calculator")


def _beyond(row: Mapping[Any, Any]) -> str:
    if row["kind"] == "refused":
        return f"{words.figure(row['beyond'], '.3g')} times: no answer"
    return "inside" if row["beyond"] == 1 else f"{words.figure(row['beyond'], '.3g')} times"


def calculator(found: Findings) -> dict[str, Any]:
    """What docs/javascripts/scaling/law.js reads: the law of each arm with its covariance, and where it comes from."""
    law, cells = found.law, found.fitted.cells
    if law is None:
        return {}
    forms = []
    for at, form in enumerate(law.forms):
        places = [0, 1, 2 + at]
        covariance = law.covariance[np.ix_(places, places)] * law.widening()
        own = {"key": form, "label": LADDER_FORMS[form][2], "coefficient": law.coefficients[at]}
        forms.append(own | {"covariance": covariance.tolist()})
    everywhere = [
        {"label": LADDER_FORMS[row["form"]][2], **{name: row[name] for name in ("parameters", "tokens", "gap")}}
        for row in found.everywhere.to_dict("records")
    ]
    loss = found.loss
    ends = [[float(cells[name].min()), float(cells[name].max())] for name in ("parameters", "tokens")]
    return {
        "exponents": law.exponents.tolist(),
        "units": list(scaling.UNITS),
        "quantile": law.quantile(0.95),
        "forms": forms,
        "recorded": ends,
        "grey": scaling.GREY,
        "refused": scaling.REFUSED,
        "loss": None if loss is None else {"beta": loss.exponents[1], "fall": loss.coefficients[2]},
        "everywhere": everywhere,
    }
