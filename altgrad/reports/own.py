"""Overview and Effects: the pages that a site of anyone's runs has, from docs/own/."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.effects import Effect, Outcomes, effects, interaction, outcomes, varied_keys
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import mean_interval
from altgrad.reports import columns as col
from altgrad.reports.charts import forest
from altgrad.reports.document import document_page
from altgrad.reports.heat_map import figures_map
from altgrad.reports.scope import STATUSES
from altgrad.site import Chart, ChartBlock, Page
from altgrad.site.document import Part

BEST_SHOWN = 20
"""Arms that the overview lists."""
ROWS_OF_A_CHART = 24
"""Most effects of a key that are drawn; the table has all."""
_KEYS = (
    col.text("Project", "project"),
    col.text("Key", "key"),
    col.of("Values", lambda row: words.names(row["values"][:8]) + (" …" if len(row["values"]) > 8 else "")),
    col.count("Arms that state it", "arms"),
)
_BEST = (
    col.arm("Arm", "label"),
    col.count("Runs", "n"),
    col.number("Mean", "mean", 4),
    col.interval(digits=4, sign=False),
    col.text("Project", "project"),
)
_EFFECTS = (
    col.text("Project", "project"),
    col.text("Key", "key"),
    col.text("Value", "value"),
    col.text("Against", "reference"),
    col.signed("Difference", "difference", 4),
    col.interval(digits=4),
    col.count("Pairs", "n_pairs"),
    col.count("Settings", "settings"),
)


def overview_page(loader: ExperimentDataLoader) -> Page:
    """What was varied, how many runs there are, how they ended, and the best with its interval."""
    found = loader.memo(outcomes)
    best, keys = _best(found), varied_keys(loader)
    runs = found.runs
    counts = runs["status"].value_counts()
    values = _values(found) | {
        "runs": len(runs),
        "arms": runs["arm"].nunique(),
        "projects": sorted(runs["project"].unique()),
        "ended": [f"{counts[status]} {status}" for status in STATUSES if status in counts],
        "best": best.iloc[0].to_dict() if len(best) else None,
        "shown": min(len(best), BEST_SHOWN),
        "ranked": len(best),
        "seedless": int(runs["seed"].isna().sum()),
        "varied": len(keys),
    }
    parts: dict[str, Part] = {
        "keys": [col.table(keys, _KEYS, "What was varied", "varied", keys.assign(values=keys["values"].map("; ".join)))]
        if len(keys)
        else [],
        "best": [col.table(best.head(BEST_SHOWN), _BEST, "Arms by their mean", "best", best)] if len(best) else [],
    }
    return document_page(loader, "overview", values, parts, code=__name__, document="own/_overview")


def effects_page(loader: ExperimentDataLoader) -> Page:
    """Each varied key against the metric, paired where seeds match; and two keys together."""
    found = loader.memo(outcomes)
    every = effects(loader)
    table = pd.DataFrame([_row(each) for each in every])
    both = interaction(loader)
    keys = list(dict.fromkeys((each.project, each.key) for each in every))
    groups = [
        {"project": project, "key": key, "chart": [ChartBlock(_forest(found, number, own))], "single": _single(own)}
        for number, (project, key) in enumerate(keys)
        for own in [[each for each in every if (each.project, each.key) == (project, key)]]
    ]
    values = _values(found) | {
        "groups": groups,
        "runs": len(found.runs),
        "both": both and both[:2],
        "unpaired": any(not each.paired for each in every),
        "many_projects": found.runs["project"].nunique() > 1,
    }
    parts: dict[str, Part] = {
        "effects": [col.table(table, _EFFECTS, "Every difference", "effects")] if every else [],
        "interaction": [ChartBlock(_map(found, *both))] if both else [],
    }
    return document_page(loader, "effects", values, parts, code=__name__, document="own/_effects")


def _values(found: Outcomes) -> dict[str, Any]:
    unit = f", {found.about.unit}" if found.about.unit else ""
    return {"metric": found.metric, "unit": unit, "better": found.about.better}


def _best(found: Outcomes) -> pd.DataFrame:
    """The arms by the mean of the metric over their finished runs, the best first."""
    rows = []
    for arm, runs in found.runs.dropna(subset=["value"]).groupby("arm"):
        estimate = mean_interval(runs["value"])
        first = runs.iloc[0]
        rows.append({"arm": arm, "label": first["label"], "project": first["project"], "n": estimate.n,
                     "mean": estimate.mean, "low": estimate.low, "high": estimate.high})  # fmt: skip
    frame = pd.DataFrame(rows, columns=["arm", "label", "project", "n", "mean", "low", "high"])
    return frame.sort_values("mean", ascending=found.sign > 0, kind="stable", ignore_index=True)


def _row(effect: Effect) -> dict[str, Any]:
    found = effect.estimate
    return {
        "project": effect.project, "key": effect.key, "value": effect.value, "reference": effect.reference,
        "difference": found.mean, "low": found.low, "high": found.high, "n_pairs": found.n,
        "settings": effect.settings, "paired": effect.paired,
    }  # fmt: skip


def _single(own: list[Effect]) -> bool:
    """Whether each difference is of one pair of runs: then there is no interval."""
    return all(each.estimate.n == 1 for each in own)


def _forest(found: Outcomes, number: int, own: list[Effect]) -> Chart:
    shown = sorted(own, key=lambda each: found.sign * each.estimate.mean)[:ROWS_OF_A_CHART]
    data, first = pd.DataFrame([_row(each) for each in shown]), shown[0]
    title = f"{first.key} against {first.reference}: {found.metric}"
    axis = f"difference of {found.metric}{_values(found)['unit']}"
    return forest(f"effect-{number}", title, "", data, [each.value for each in shown], axis)


def _map(found: Outcomes, one: str, two: str, cells: pd.DataFrame) -> Chart:
    levels = np.nanquantile(cells.to_numpy() * found.sign, [0.2, 0.4, 0.6, 0.8])
    legend = ("best fifth", "second", "third", "fourth", "worst fifth")
    data = cells.rename_axis(index=one, columns=two).stack().rename(found.metric).reset_index()
    text = partial(words.figure, form=".4g")
    signed = cells * found.sign
    return figures_map(
        "interaction", f"{found.metric} by {one} and {two}", signed, data, list(levels), legend,
        lambda value: text(value * found.sign), f"Rows: {one}; columns: {two}.",
    )  # fmt: skip


def own_pages(loader: ExperimentDataLoader) -> list[Page]:
    """Both pages."""
    return [overview_page(loader), effects_page(loader)]
