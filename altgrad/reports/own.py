"""Overview, Effects, Curves and Health: the pages that a site of anyone's runs has, from docs/own/."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import chain, islice
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.effects import (
    Effect,
    Outcomes,
    Setting,
    Together,
    effects,
    interaction,
    metrics_of,
    outcomes,
    strongest,
    uneven,
    untold,
    varied_keys,
)
from altgrad.analysis.labels import site_labels
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import mean_interval, t_quantile
from altgrad.config import OPERAND_NAMES
from altgrad.reports import columns as col
from altgrad.reports import health
from altgrad.reports.charts import forest
from altgrad.reports.compare import averaged, health_by_type
from altgrad.reports.curves import by_step, losses_of, lost
from altgrad.reports.document import document_page, macros_of
from altgrad.reports.heat_map import figures_map
from altgrad.reports.scope import site_values
from altgrad.site import MUTED, PALETTE, Axis, Chart, ChartBlock, Column, Page, Sketch, plot_axes
from altgrad.site.document import Part
from altgrad.site.sketch import INCH, spread
from altgrad.text import cut, visible

BEST_SHOWN = 20
"""Arms that the overview lists."""
ROWS_OF_A_CHART = 24
"""Most effects of a key that are drawn; the table has all."""
LABEL = 47
"""Letters that a value and how many runs it is of have in a chart."""
FAILED_NAMED = 5
"""Runs without a result that are named, of each way to end."""
STRONGEST, SETTINGS_SHOWN = 12, 60
"""Keys that Effects begins with, and differences in single settings that it lists; the file has all."""
HEALTH_ARMS = 200
"""Arms whose layers Health reads and lists: those in which a run ended badly, then the best."""
METRICS_DRAWN, ARMS_DRAWN, NAMED, POINTS_DRAWN, LONGEST_LINE = 12, 24, 8, 80, 48
"""In Curves: most charts of a project (fewer of several), arms in each, arms with a name, points of a line, and letters
in a line of a name."""
_MARK = ", {runs} of {all} stop at step {step}"
_HEALTH = (
    col.arm("Arm", "label"),
    col.text("Operand", "operand", OPERAND_NAMES),
    col.text("Layers", "layers"),
)
_STATISTICS = {
    "overflow": col.percent("Overflow", "overflow"),
    "underflow": col.percent("Underflow", "underflow"),
    "sqnr_db": col.number("SQNR (dB)", "sqnr_db", 1),
    "stall_ratio": col.percent("Stall ratio", "stall_ratio"),
}
PROJECT, KEY = col.text("Project", "project"), col.text("Key", "key")


_TEST = ("key", "verdict", "depends", "share", "p_mean", "p_between")
_VERDICTS = {"depends": "yes, by how much depends on the setting", "matters": "yes", "not shown": "not shown"}


def _matters(row: Mapping[str, Any]) -> str | None:
    """What the tests say of a key; None where there are none."""
    depends = row["depends"]
    return f"yes, by how much depends on {depends}" if isinstance(depends, str) else _VERDICTS.get(row["verdict"])


MATTERS = col.of("Matters", _matters)
_TESTS = (
    KEY,
    MATTERS,
    col.percent("Share of the variance between arms", "share"),
    col.p("p, alike in all settings", "p_mean"),
    col.p("p, differs between settings", "p_between"),
)


def _project(frame: pd.DataFrame) -> tuple[Column, ...]:
    """The project of each row, where there are several."""
    return (PROJECT,) if frame["project"].nunique() > 1 else ()


def _key_columns(digits: int, known: bool) -> tuple[Column, ...]:
    """The keys; where the effect of one is known, the largest of each."""
    largest = (
        col.filled("Compared", "{value} against {reference}", right=False, blank="not known"),
        col.signed("Difference", "difference", digits),
        col.interval(digits=digits),
        _between(digits),
        MATTERS,
    )
    return (KEY, col.of("Values", lambda row: _some(row["values"])), *(largest if known else ()))


def _between(digits: int) -> Column:
    """From the smallest to the largest mean of a setting."""
    return col.filled("Between settings", f"{{smallest:+.{digits}f}} to {{largest:+.{digits}f}}")


def _some(values: list[str]) -> str:
    return words.names([cut(value, 40) for value in values[:8]]) + (" …" if len(values) > 8 else "")


def _best_columns(digits: int) -> tuple[Column, ...]:
    return (
        col.arm("Arm", "label"),
        col.text("Runs", "counted"),
        col.number("Mean", "mean", digits),
        col.interval(digits=digits, sign=False),
    )


def _effect_columns(digits: int) -> tuple[Column, ...]:
    return (
        KEY,
        col.text("Value", "value"),
        col.text("Against", "reference"),
        col.signed("Difference", "difference", digits),
        col.interval(digits=digits),
        col.count("Pairs", "n_pairs"),
        col.count("Seeds", "seeds"),
        col.count("Settings", "settings"),
        _between(digits),
    )


def _setting_columns(digits: int) -> tuple[Column, ...]:
    return (
        KEY,
        col.text("Value", "value"),
        col.text("Against", "reference"),
        col.text("Setting", "setting"),
        col.signed("Difference", "difference", digits),
        col.interval(digits=digits),
        col.text("Seeds", "counted"),
    )


def overview_page(loader: ExperimentDataLoader) -> Page:
    """What was varied, how many runs there are, how they ended, and the best with its interval."""
    found = loader.memo(outcomes)
    best, keys, runs = _best(found), varied_keys(loader), found.runs
    projects = runs["project"].nunique()
    shown = best.groupby("project").head(max(1, BEST_SHOWN // max(1, projects))).sort_values("project", kind="stable")
    largest = pd.DataFrame(map(_row, strongest(loader.memo(effects))), columns=[*_ROW])
    keys = keys.merge(largest, on=["project", "key"], how="left")
    keys = keys.sort_values("share", ascending=False, kind="stable")
    keys, known = keys.sort_values("project", kind="stable", ignore_index=True), bool(len(largest))
    values = site_values(loader) | {
        "runs": len(runs),
        "arms": runs["arm"].nunique(),
        "projects": projects,
        "best": best.iloc[0].to_dict() if len(best) else None,
        "shown": len(shown),
        "ranked": len(best),
        "seedless": int(runs["seed"].isna().sum()),
        "near": _near(found, best),
        "ended": _ended(runs),
        "varied": len(keys),
        "known": known,
        "untold": untold(loader),
    }
    parts: dict[str, Part] = {
        "keys": [
            col.table(
                keys,
                (*_project(keys), *_key_columns(values["digits"], known)),
                "Keys with several values",
                "varied",
                keys.assign(values=keys["values"].map("; ".join)),
            )
        ]
        if len(keys)
        else [],
        "best": [
            col.table(shown, (*_project(shown), *_best_columns(values["digits"])), "Arms by their mean", "best", best)
        ]
        if len(best)
        else [],
    }
    return document_page(loader, "overview", values, parts, code=__name__, document="own/_overview")


def effects_page(loader: ExperimentDataLoader) -> Page:
    """Each varied key against the metric, paired where seeds match; and two keys together."""
    found = loader.memo(outcomes)
    every = loader.memo(effects)
    table = pd.DataFrame(map(_row, every), columns=[*_ROW])
    tests, by_setting = pd.DataFrame(map(_row, strongest(every)), columns=[*_ROW]), _settings(every)
    both = interaction(loader)
    keys = list(dict.fromkeys((each.project, each.key) for each in every))
    axis = found.measure.axis if found.measure else ""
    figures = [figure for each in every for figure in (each.estimate.mean, each.estimate.low, each.estimate.high)]
    known = [0.0, *filter(math.isfinite, figures)]
    pad = 0.05 * (max(known) - min(known)) or 0.5
    reach = (min(known) - pad, max(known) + pad)
    groups = [
        {
            "project": project,
            "key": key,
            "chart": [ChartBlock(_forest(found, number, own, axis, reach))],
            "single": all(each.alone for each in own),
        }
        for number, (project, key) in enumerate(keys)
        for own in [[each for each in every if (each.project, each.key) == (project, key)]]
    ]
    values = site_values(loader) | {
        "groups": groups,
        "runs": len(found.runs),
        "both": both,
        "strongest": [_row(each) | {"effect": each} for each in strongest(every)[:STRONGEST]],
        "tested": bool(tests["p_mean"].notna().any()),
        "uneven": uneven(loader),
        "labels": loader.memo(site_labels),
        "by_setting": len(by_setting),
        "listed": SETTINGS_SHOWN,
        "untold": untold(loader),
        "sign": found.sign,
        "ended": _ended(found.runs),
        "unpaired": any(each.unpaired for each in every),
        "seedless": any(of.paired and not of.seeds for each in every for of in each.settings),
        "many_projects": found.runs["project"].nunique() > 1,
    }
    parts: dict[str, Part] = {
        "effects": [
            col.table(table, (*_project(table), *_effect_columns(values["digits"])), "Every difference", "effects")
        ]
        if every
        else [],
        "tests": [
            col.table(tests[["project", *_TEST]], (*_project(tests), *_TESTS), "Whether each key matters", "tests")
        ]
        if tests["p_mean"].notna().any()
        else [],
        "settings": [
            col.table(
                by_setting[:SETTINGS_SHOWN],
                (*_project(by_setting), *_setting_columns(values["digits"])),
                "The difference in each setting",
                "settings",
                by_setting,
            )
        ]
        if len(by_setting)
        else [],
        "interaction": [ChartBlock(_map(found, both))] if both else [],
    }
    return document_page(loader, "effects", values, parts, code=__name__, document="own/_effects")


def _best(found: Outcomes) -> pd.DataFrame:
    """The arms by the mean of the metric over their finished runs, the best first."""
    rows = []
    for arm, runs in found.runs.groupby("arm"):
        estimate, first = mean_interval(runs["value"].dropna()), runs.iloc[0]
        if not estimate.n:
            continue
        counted = words.counted(estimate.n, runs["ending"].tolist())
        ends = (estimate.mean, estimate.low, estimate.high)
        rows.append((arm, first["label"], first["project"], estimate.n, counted, *ends))
    frame = pd.DataFrame(rows, columns=["arm", "label", "project", "n", "counted", "mean", "low", "high"])
    return frame.sort_values("mean", ascending=found.sign > 0, kind="stable", ignore_index=True)


def _ended(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """How the runs that have no result ended: each ``how``, the ``count`` of them, and arm and id of the first."""
    without = runs[runs["value"].isna()]
    ways = without["status"].replace("finished", "without a finite value")
    named = {how: own[["arm", "run_id"]].values.tolist() for how, own in without.groupby(ways)}
    counts = ways.value_counts()
    return [{"how": how, "count": int(count), "runs": named[how][:FAILED_NAMED]} for how, count in counts.items()]


def _near(found: Outcomes, best: pd.DataFrame) -> dict[str, Any]:
    """How many ``arms`` are within noise of the best one: the 95% interval of their difference from it has 0 in it.

    Differences are of runs of the same seed; those of fewer than three have the standard deviation of all arms'
    differences. Where that is not known, it is that of runs pooled over arms; ``paired``: whether any was.
    """
    if best.empty:
        return {"arms": 0, "paired": False}
    first, others = best["arm"].iloc[0], best["arm"].iloc[1:]
    runs = found.runs.dropna(subset=["value"])
    wide = runs.pivot_table(index="seed", columns="arm", values="value", aggfunc="first").reindex(columns=best["arm"])
    gaps = wide[others].sub(wide[first], axis=0)
    n, sd = gaps.count(), gaps.std()
    error = (sd.where(n > 2, _pooled(sd, n)) / np.sqrt(n)).where(n > 0)
    degrees = (n - 1).where(n > 2, int((n - 1).clip(0).sum()))
    paired = error.notna()
    of_arm = runs.groupby("arm")["value"].agg(["mean", "std", "count"]).loc[best["arm"]]
    count, means = of_arm["count"], of_arm["mean"]
    apart = np.sqrt(1 / count + 1 / count[first]) * _pooled(of_arm["std"], count)
    mean = gaps.mean().where(paired, (means - means[first])[others])
    degrees = degrees.where(paired, int((count - 1).sum()))
    half = error.where(paired, apart[others]) * [t_quantile(int(each)) if each else math.nan for each in degrees]
    return {"arms": int((mean.abs() <= half).sum()), "paired": bool(paired.any())}


def _pooled(sd: pd.Series, n: pd.Series) -> float:
    """The standard deviation within groups of `n` values; NaN where none has two."""
    degrees = (n - 1).clip(0)
    return math.sqrt((sd.fillna(0) ** 2 * degrees).sum() / degrees.sum()) if degrees.sum() else math.nan


_ROW = (
    "project", "key", "value", "reference", "difference", "low", "high", "n_pairs", "n_unpaired", "seeds", "settings",
    "smallest", "largest", "share", "p_mean", "p_between", "verdict", "depends",
)  # fmt: skip


def _row(effect: Effect) -> dict[str, Any]:
    found = effect.estimate
    what = (effect.project, effect.key, effect.value, effect.reference, found.mean, found.low, found.high)
    counts = (effect.pairs, effect.unpaired, effect.seeds, len(effect.settings), *effect.reach)
    test = effect.test
    tests = (test.share, test.mean, test.between, test.verdict, test.depends)
    return dict(zip(_ROW, (*what, *counts, *tests), strict=True))


def _settings(every: list[Effect]) -> pd.DataFrame:
    """A row a difference and setting, of keys that were varied in several."""
    rows = [
        {"project": effect.project, "key": effect.key, "value": effect.value, "reference": effect.reference,
         "setting": ", ".join(f"{key}={value}" for key, value in each.others.items()), "difference": each.estimate.mean,
         "low": each.estimate.low, "high": each.estimate.high, "counted": _seeds(each),
         "n_pairs": each.estimate.n * each.paired, "n_value": each.runs[0], "n_reference": each.runs[1]}
        for effect in every
        for each in effect.settings
        if len(effect.settings) > 1
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _seeds(setting: Setting) -> str:
    """Of how many seeds a difference is, in words."""
    if not setting.paired:
        return f"{setting.runs[0]} and {setting.runs[1]}, not paired"
    return str(setting.estimate.n) if setting.estimate.n > 1 else "one seed each" if setting.seeds else "not stated"


def _forest(found: Outcomes, number: int, own: list[Effect], axis: str, ends: tuple[float, float]) -> Chart:
    shown = sorted(own, key=lambda each: found.sign * each.estimate.mean)[:ROWS_OF_A_CHART]
    data, first = pd.DataFrame([_row(each) for each in shown]), shown[0]
    unpaired = data["n_unpaired"].map(lambda runs: f", {runs} unpaired" if runs else "")
    data["counted"] = "n = " + data["n_pairs"].astype(str) + unpaired
    title = f"{first.key} against {cut(first.reference, 40)}: {found.metric}"
    names = [cut(each.value, min(40, LABEL - len(count))) for each, count in zip(shown, data["counted"], strict=True)]
    about = str(macros_of("untold").differences(first.key, len(own))).strip()
    return forest(f"effect-{number}", title, about, data, names, f"difference of {axis}", figures=False, ends=ends)


def _map(found: Outcomes, both: Together) -> Chart:
    one, two, cells, settings, _ = both
    digits = found.measure.digits if found.measure else 4
    shown = cells.round(digits) * found.sign  # what reads alike has one colour
    levels = np.quantile(np.unique(shown.to_numpy()[shown.notna()]), [0.2, 0.4, 0.6, 0.8])
    legend = ("best fifth", "second", "third", "fourth", "worst fifth")
    data = cells.rename_axis(index=one, columns=two).stack().dropna().rename(found.metric).reset_index()
    text = partial(words.number, digits=digits)
    title = f"{found.metric} by {one} (rows) and {two} (columns)"
    title += f", mean over {len(settings)} settings" if len(settings) > 1 else ""
    return figures_map(
        "interaction", title, shown, data, list(levels), legend,
        lambda value: text(value * found.sign), f"Rows: {one}; columns: {two}.",
    )  # fmt: skip


def curves_page(loader: ExperimentDataLoader) -> Page:
    """Every metric over the steps, a chart for each project and metric: the best arms by name, others as thin lines."""
    found, names = loader.memo(outcomes), measure_names(loader)
    ranked, labels = _best(found)["arm"].tolist(), loader.memo(site_labels)
    groups, shown_names = [], set[str]()
    most = max(3, METRICS_DRAWN // max(1, loader.runs["study"].nunique()))
    for number, (project, runs) in enumerate(loader.runs.groupby("study", sort=True)):
        own = runs["arm"].unique().tolist()
        arms = [arm for arm in ranked if arm in own] + [arm for arm in own if arm not in ranked]
        charts: list[ChartBlock] = []
        for place, metric in enumerate(names):
            chart = _curves(loader, f"curve-{number}-{place}", metric, arms, labels) if len(charts) < most else None
            if chart is not None:
                charts.append(ChartBlock(chart))
                shown_names.add(metric)
        more = max(0, len(arms) - ARMS_DRAWN)
        shown = ",".join(arms[:NAMED])
        groups.append({"project": project, "charts": charts, "arms": len(arms), "left": more, "address": shown})
    drawn = [group for group in groups if group["charts"]]
    values = site_values(loader) | {
        "groups": drawn,
        "runs": len(loader.runs),
        "more": [visible(name) for name in names if name not in shown_names][:20],
        "count": len(names) - len(shown_names),
        "named": NAMED,
    }
    return document_page(loader, "curves", values, {}, code=__name__, document="own/_curves")


def measure_names(loader: ExperimentDataLoader) -> list[str]:
    """The metrics that have a chart: the one by which runs are compared first, then what the most runs have."""
    measure = loader.memo(outcomes).measure
    names = metrics_of(loader.records.values())
    return sorted(names, key=lambda name: measure is None or name != measure.name)


def _curves(
    loader: ExperimentDataLoader, identity: str, metric: str, arms: list[str], labels: Mapping[str, str]
) -> Chart | None:
    """A metric of some arms, the first of them named; None where none has it at two steps."""
    curved = ((arm, losses) for arm in arms if (losses := losses_of(loader, arm, metric)).steps.size > 1)
    found = dict(islice(curved, ARMS_DRAWN))
    if not found:
        return None
    lines = {arm: _thinned(by_step(losses)) for arm, losses in found.items()}
    data = pd.concat([rows.assign(arm=labels[arm]) for arm, rows in lines.items()], ignore_index=True)
    data = data[["arm", "step", "mean", "low", "high", "n"]]
    bottom, top = float(data["low"].min()), float(data["high"].max())
    pad = 0.04 * (top - bottom) or 0.5
    marks = {arm: _MARK.format(**gone) if (gone := lost(losses)) else "" for arm, losses in found.items()}
    title, names = visible(metric), [wrap(visible(labels[arm]) + marks[arm], LONGEST_LINE) for arm in [*lines][:NAMED]]
    room = 8 + 6 * max(map(len, chain(*names)))
    high = max(3.3, (11 * sum(map(len, names)) + 60) / INCH)

    def draw(sketch: Sketch) -> None:
        x = Axis(float(data["step"].min()), float(data["step"].max()), 48, sketch.width - room)
        y = Axis(bottom - pad, top + pad, sketch.height - 36, 20)
        plot_axes(sketch, x, y, "step", title)
        ends = []
        for place, (arm, rows) in reversed([*enumerate(lines.items())]):
            colour = PALETTE[place] if place < NAMED else MUTED
            runs = found[arm].values if rows["mean"].isna().any() else None
            with sketch.told(labels[arm] + marks[arm]):
                if runs is None:
                    sketch.line(zip(map(x, rows["step"]), map(y, rows["mean"]), strict=True), colour, 1.6)
                for run in () if runs is None else runs:
                    at = np.flatnonzero(~np.isnan(run))
                    at = at[:: max(1, math.ceil(len(at) / POINTS_DRAWN))]
                    sketch.line([(x(found[arm].steps[each]), y(run[each])) for each in at], colour, 0.8)
            if place < NAMED:
                last = rows[["low", "high"]].iloc[-1].mean()
                ends += [(y(float(last)), part, colour) for part in names[place]]
        heights = spread([end[0] for end in ends], 11)
        up = max(0.0, max(heights) - y.start)
        for (_, part, colour), height in zip(ends, heights, strict=True):
            sketch.text(sketch.width - room + 4, height + 3 - up, part, colour)

    ends = [{"arm": labels[arm], **rows.iloc[-1].to_dict()} for arm, rows in list(lines.items())[:NAMED]]
    about = str(macros_of("layers").lines(len(lines), ends)).strip()
    return Chart(identity, title, about, data, sketch=draw, width=5.2 + room / INCH, height=high)


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS_DRAWN` of the rows of a curve, the last one among them."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS_DRAWN)).astype(int))
    return rows.iloc[places]


def health_page(loader: ExperimentDataLoader) -> Page | None:
    """What rounding did in the layers, for each arm that recorded it; None where none did."""
    labels, rows = loader.memo(site_labels), list[dict[str, Any]]()
    looked = {arm: ids for arm, runs in loader.runs.groupby("arm", sort=True) if (ids := averaged(loader, runs))}
    bad = set(loader.runs.loc[~loader.runs["status"].isin(("finished", "running")), "arm"])
    ranked = {arm: place for place, arm in enumerate(_best(loader.memo(outcomes))["arm"])}
    shown = sorted(looked, key=lambda arm: (arm not in bad, ranked.get(arm, len(ranked))))[:HEALTH_ARMS]
    for arm in sorted(shown):
        last = health.last_rounded(loader, str(arm), looked[arm])
        for statistic, operand, kind, value in health_by_type(last):
            rows.append({"arm": arm, "label": labels[arm], "operand": operand, "layers": kind, statistic: value})
    if not rows:
        return None
    keys = ["arm", "label", "operand", "layers"]
    frame = pd.DataFrame(rows, columns=[*keys, *_STATISTICS]).groupby(keys, sort=False).first().reset_index()
    frame = frame.dropna(axis=1, how="all")
    columns = [*_HEALTH, *(column for name, column in _STATISTICS.items() if name in frame)]
    worst = [
        {
            "name": name,
            **frame.loc[frame[name].idxmax()].to_dict(),
            "value": frame[name].max(),
            "where": OPERAND_NAMES.get(frame.loc[frame[name].idxmax(), "operand"]),
        }
        for name in ("overflow", "underflow", "stall_ratio")
        if name in frame and frame[name].max() > 0
    ]
    counts = {"arms": len(looked), "all": loader.runs["arm"].nunique(), "shown": len(shown)}
    counts |= {"left": len(looked) - len(shown), "bare": len(shown) - frame["arm"].nunique()}
    values = site_values(loader) | counts | {"worst": worst}
    parts: dict[str, Part] = {"health": [col.table(frame, columns, "Layers at the last measurement", "health")]}
    return document_page(loader, "health", values, parts, code=__name__, document="own/_health")


def own_pages(loader: ExperimentDataLoader) -> list[Page]:
    """The pages of a site of anyone's runs; Health where there is something to show."""
    pages = (overview_page(loader), effects_page(loader), curves_page(loader), health_page(loader))
    return [page for page in pages if page is not None]
