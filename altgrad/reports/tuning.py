"""The tuning studies: a page a study, with a table for each swept arm, so that its many rates need no page each."""

from __future__ import annotations

import math
from dataclasses import replace
from textwrap import wrap

import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import format_order
from altgrad.analysis.effects import outcomes
from altgrad.analysis.labels import arm_labels
from altgrad.analysis.loader import ExperimentDataLoader, unquantized
from altgrad.reports import columns as col
from altgrad.reports.document import document_page
from altgrad.reports.format_styles import format_style
from altgrad.site import FOREGROUND, GRID, MUTED, Axis, Chart, ChartBlock, Md, Page, PageRef, Table, code, slug
from altgrad.site.document import Part
from altgrad.site.sketch import Sketch, number_text

MOST_PAGES = 420
"""Arms that have a page of their own: nobody reads more, and each takes a quarter of a second to build."""
PANEL = (112.0, 84.0)
"""Width and height of one sweep in the overview, in points."""
ACROSS = 4
HEAD = 46.0
"""Height of a sweep's name above its panel, in points."""


def swept(loader: ExperimentDataLoader) -> dict[str, PageRef]:
    """Where the arms are whose every run is of a tuning study: path of their own page -> place on the study's."""
    rows = loader.runs
    first = rows[~rows["arm"].isin(rows.loc[rows["role"] != "tuning", "arm"])].drop_duplicates("arm")
    return {f"runs/{row.arm}": PageRef(_path(str(row.study)), str(row.arm)) for row in first.itertuples()}


def moved(loader: ExperimentDataLoader) -> dict[str, PageRef]:
    """Where the arms are that have no page of their own: the `swept` ones, and all but the first of many in the table.

    The first are the unquantized ones, which the others are compared with, then those with the best mean of the metric.
    """
    found, results = loader.memo(swept), loader.memo(outcomes)
    left = loader.runs[~("runs/" + loader.runs["arm"]).isin(found.keys())].drop_duplicates("arm")
    means = left["arm"].map(results.runs.groupby("arm")["value"].mean() * results.sign)
    order = left.assign(mean=means, other=~unquantized(left)).sort_values(["other", "mean"], kind="stable")
    return found | {f"runs/{arm}": PageRef("runs/index") for arm in order["arm"].iloc[MOST_PAGES:]}


def tuning_studies(loader: ExperimentDataLoader) -> dict[str, str]:
    """The names of the tuning studies, and the paths of their pages."""
    return {study: _path(study) for study in sorted(set(loader.runs.query("role == 'tuning'")["study"]))}


def _path(study: str) -> str:
    return f"runs/study-{slug(study)}"


def tuning_page(loader: ExperimentDataLoader, study: str) -> Page:
    """The page of a tuning study."""
    runs = loader.runs[(loader.runs["role"] == "tuning") & (loader.runs["study"] == study)]
    sweeps = [_sweep(rows) for _, rows in runs.groupby(["format", "scope", "rule", "problem"], sort=False)]
    sweeps.sort(key=lambda sweep: (format_order(sweep["format"].iat[0]), sweep["rule"].iat[0], sweep["problem"].iat[0]))
    firsts = [sweep["arm"].iat[0] for sweep in sweeps]
    labels = arm_labels(loader, firsts, but=("optimizer.learning_rate",))
    sweeps = [sweep.assign(label=labels[arm]) for sweep, arm in zip(sweeps, firsts, strict=True)]
    data = pd.concat(sweeps, ignore_index=True)
    best = data[data["best"]]
    edge = int(best["edge"].sum())
    values = {"study": study, "arms": len(sweeps), "rates": len(data), "runs": len(runs), "edge": edge}
    parts: dict[str, Part] = {
        "overview": [ChartBlock(_overview(data))] if data["mean"].notna().any() else [],
        "best": [_summary(best)],
        "sweeps": [_section(runs, sweep) for sweep in sweeps],
    }
    whose = "of its arms and of their baselines"
    page = document_page(loader, _path(study), values, parts, code=__name__, document="runs/_study", of=whose)
    return replace(page, search=False)


def _sweep(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a learning rate: its arm, mean loss (infinite where a run did not finish), whether it is the best."""
    losses = runs.groupby(["learning_rate", "arm"], dropna=False)["final_val_loss"]
    sweep = losses.agg(mean=lambda found: found.mean(skipna=False), n="size").reset_index()
    names = {key: runs[key].iloc[0] for key in ("format", "scope", "rule", "problem")}
    best = sweep.index == (sweep["mean"].idxmin() if sweep["mean"].notna().any() else -1)
    return sweep.assign(**names, best=best, edge=best & sweep.index.isin([0, len(sweep) - 1]))


def _summary(best: pd.DataFrame) -> Table:
    columns = (
        col.text("Arm", "label"),
        col.of("Best rate", lambda row: col.arm_link(row["arm"], f"{row['learning_rate']:g}"), right=True),
        col.number("Mean loss", "mean", 4),
        col.text("At an edge", "edge", {True: "yes", False: "no"}),
    )
    return col.table(best, columns, "The best rate of each arm", "best", data=best.drop(columns="edge"))


def _section(runs: pd.DataFrame, sweep: pd.DataFrame) -> Table:
    def rate(row: col.Row) -> Md:
        anchor = f'<a id="{slug(row["arm"])}"></a>' if row["first"] else ""
        return Md(f"{anchor}{row['learning_rate']:g}")

    columns = (
        col.of("Rate", rate, right=True),
        col.of("Run", lambda row: Md(f'<a id="{slug(row["run_id"])}"></a>{code(row["run_id"])}')),
        col.text("Status", "status"),
        col.number("Final validation loss", "final_val_loss", 4),
        col.last_step(),
        col.number("Mean of the rate", "mean", 4),
        col.of("", lambda row: "best" if row["best"] else ""),
    )
    own = runs[["arm", "run_id", "status", "final_val_loss", "last_step"]]
    rows = sweep.merge(own, on="arm")
    return col.table(rows.assign(first=~rows["arm"].duplicated()), columns, str(sweep["label"].iat[0]))


def _overview(data: pd.DataFrame) -> Chart:
    """A small panel for each swept arm: mean loss by learning rate, the best one marked; one height for all."""
    groups = [group for _, group in data.groupby(["format", "scope", "rule", "problem"], sort=False)]
    finite = data["mean"].dropna()
    low = float(finite.min())
    high = float(min(finite.max(), low + 4 * (finite.median() - low) + 0.05))
    height = HEAD + math.ceil(len(groups) / ACROSS) * (PANEL[1] + 14 + HEAD)

    def draw(sketch: Sketch) -> None:
        for number, group in enumerate(groups):
            left = 26 + (number % ACROSS) * (PANEL[0] + 12)
            top = HEAD + (number // ACROSS) * (PANEL[1] + 14 + HEAD)
            rates = group["learning_rate"]
            x = Axis(float(rates.min()), float(rates.max()), left + 6, left + PANEL[0] - 6, log=bool((rates > 0).all()))
            y = Axis(low, high, top + PANEL[1], top + 16)
            row = group.iloc[0]
            name = str(row["format"])
            sketch.text(left, top - HEAD + 14, name if len(name) <= 22 else f"{name[:21]}…", bold=True)
            rest = str(row["label"]).removeprefix(f"{name}, ")
            for line, text in enumerate(wrap(rest, 22, max_lines=4, placeholder="…")):
                sketch.text(left, top - HEAD + 25 + 10.5 * line, text, MUTED)
            sketch.line([(left, y.start), (left + PANEL[0], y.start)], GRID, 0.8)
            for value in (low, high):
                if number % ACROSS == 0:
                    sketch.text(left - 4, y(value) + 3, words.number(value, 2), MUTED, anchor="end")
            points = [(x(rate), max(y(loss), top + 12)) for rate, loss in zip(rates, group["mean"], strict=True)]
            colour = format_style(name).colour
            sketch.line(points, colour, 1.2)
            for point, rate, loss in zip(points, rates, group["mean"], strict=True):
                with sketch.told(f"{row['label']}: {words.number(loss)} at {words.figure(rate)}"):
                    sketch.dots([point], colour, 1.5)
            for rate, loss in group.loc[group["best"], ["learning_rate", "mean"]].itertuples(index=False):
                sketch.dots([(x(rate), y(loss))], FOREGROUND, 3)
                sketch.text(x(rate), y.start + 10, number_text(rate), FOREGROUND, anchor="middle")

    said = "; ".join(
        f"{row['label']}: {row['learning_rate']:g} with {row['mean']:.3f}"
        for row in data[data["best"]].to_dict("records")
    )
    shown = data.drop(columns=["edge", "problem"])
    return Chart(
        "sweeps",
        "Mean final validation loss by learning rate",
        f"Best rates: {said}.",
        shown,
        sketch=draw,
        height=height / 72,
    )
