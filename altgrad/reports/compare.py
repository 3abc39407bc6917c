"""What the Runs table and the Compare page read: every run column by column, an arm's file, and the page itself.

The scripts in docs/javascripts/runs/ choose, sort, pair and draw. Means, intervals and t quantiles are computed here.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from altgrad.analysis import words
from altgrad.analysis.comparison import format_order
from altgrad.analysis.effects import OWN, Measure, last_value, measure_of, outcomes
from altgrad.analysis.labels import naming, site_labels, values_of
from altgrad.analysis.loader import NOT_STATED, ExperimentDataLoader, unquantized
from altgrad.analysis.statistics import mean_interval, t_quantile
from altgrad.config import ExperimentConfig, flat, scalar
from altgrad.reports.curves import compact, history_value, metric_key, metrics_of_arm, plain, runs_value
from altgrad.reports.document import document_page
from altgrad.reports.format_styles import DASHES, format_style, styles_value
from altgrad.reports.scope import has_campaign
from altgrad.reports.tuning import moved
from altgrad.runs import RunRecord
from altgrad.runs.pack import is_histogram
from altgrad.site import Download, Page
from altgrad.site.content import web_address
from altgrad.text import cut, visible

QUANTILES = 64
"""Fewest degrees of freedom for which the scripts are given t quantiles; more where an arm has more runs."""
SUGGESTED = 6
"""Most comparisons that the Compare page offers before arms are chosen."""
BEST = 8
"""Arms of a project of other loops' runs that such a comparison has."""

SWEPT = 8
"""Most keys of other loops' configs that have a column."""
_HAVE_COLUMNS = ("optimizer.learning_rate", "max_steps")
_OF_ARM = ("format", "scope", "rule", "learning_rate", "max_steps")
_ARM_COLUMNS = ("arm", "label", *_OF_ARM, "runs", "finished", "counted", "n", "val_loss", "low", "high",
                "stall_ratio", "studies")  # fmt: skip
_RUN_ID = re.compile(r"(?P<name>.+)-s(?P<seed>\d+)-(?P<hash>[0-9a-f]{8})")


def arms_in_order(loader: ExperimentDataLoader) -> list[str]:
    """Every arm, by format and name; of other loops' arms by what they are called."""
    first, labels = loader.runs.drop_duplicates("arm"), loader.memo(site_labels)
    names = [labels[arm] if foreign else "" for arm, foreign in zip(first["arm"], first["foreign"], strict=True)]
    return [arm for *_, arm in sorted(zip(first["format"].map(format_order), names, first["arm"], strict=True))]


def arm_table(loader: ExperimentDataLoader) -> pd.DataFrame:
    """One row an arm, in their order: what it is called and is, how its runs ended, and what they ended with.

    ``val_loss``, which is the site's metric, whatever that is called, its 95% t interval ``low`` and ``high`` and
    ``stall_ratio`` are means over the finished runs, ``n`` of them; tuning seeds count only where an arm has no
    others. ``finished`` is NA where the logs do not say how runs ended; ``counted`` has all in words.
    """
    names = ("role", "status", "ending", "study", "stall_ratio", *_OF_ARM)
    role, status, ending, study, stall, *of_arm = (loader.runs[name].tolist() for name in names)
    loss = ends(loader)
    found = defaultdict[str, list[int]](list)
    for run, arm in enumerate(loader.runs["arm"].tolist()):
        found[arm].append(run)
    rows: list[tuple[Any, ...]] = []
    labels = loader.memo(site_labels)
    for arm in arms_in_order(loader):
        runs = found[arm]
        counted = [run for run in runs if role[run] == "report"] or runs
        estimate = mean_interval([loss[run] for run in counted if not math.isnan(loss[run])])
        stalls = [stall[run] for run in counted if status[run] == "finished" and not math.isnan(stall[run])]
        stalled = math.fsum(stalls) / len(stalls) if stalls else math.nan
        told = all(ending[run] != "not recorded" for run in runs)
        sound = sum(status[run] == "finished" for run in runs)
        numbers = (len(runs), sound if told else pd.NA, words.counted(sound, [ending[run] for run in runs]), estimate.n)
        losses, studies = (estimate.mean, estimate.low, estimate.high), ", ".join(sorted({study[run] for run in runs}))
        rows.append((arm, labels[arm], *(values[runs[0]] for values in of_arm), *numbers, *losses, stalled, studies))
    return pd.DataFrame(rows, columns=list(_ARM_COLUMNS)).astype({"finished": "Int64"})


def table_json(loader: ExperimentDataLoader, arms: pd.DataFrame) -> bytes:
    """Arms and runs column by column, for tables of ten thousand rows in one small file.

    Text is an index into the column's words; ``runs.arm`` is the row of the arm. ``t[k]`` is the two-sided 95% quantile
    of Student's t for k degrees of freedom. ``styles`` are those of the formats, ``dashes`` what tells lines of one
    colour apart. ``arms.study_page`` names the page of an arm that has none itself: a study's, or this one.
    """
    runs, measure = loader.runs, loader.memo(measure_of)
    pages = [loader.memo(moved).get(f"runs/{arm}") for arm in arms["arm"]]
    row_of = {arm: row for row, arm in enumerate(arms["arm"])}
    ids = [_run_id(run_id, seed) for run_id, seed in zip(runs["run_id"], runs["seed"], strict=True)]
    most = int(arms["runs"].max()) if len(arms) else 0
    return compact(
        {
            "arms": {
                **{key: _column(arms[key]) for key in _ARM_COLUMNS if key not in ("arm", "label")},
                "label": [visible(label) for label in arms["label"]],
                "arm": arms["arm"].tolist(),
                "study_page": _words([None if page is None else page.path.rsplit("/", 1)[-1] for page in pages]),
            },
            "runs": {
                "arm": [row_of[arm] for arm in runs["arm"]],
                "name": _words([name for name, _ in ids]),
                "hash": [digits for _, digits in ids],
                "failure": _words([*map(_why, runs["failure"], runs["foreign"])]),
                "wandb": _words([web_address(url) if isinstance(url, str) else None for url in runs["wandb_url"]]),
                **{key: _column(runs[key]) for key in ("seed", "study", "role")},
                "status": _column(runs["ending"]),
                "last_step": [step if step >= 0 else None for step in runs["last_step"].tolist()],
                "final_val_loss": plain(ends(loader)),
                "stall_ratio": plain(runs["stall_ratio"].tolist()),
            },
            "styles": styles_value(arms["format"]),
            "dashes": list(map(list, DASHES)),
            "suggested": _suggested(loader, arms),
            "metric": measure and measure._asdict(),
            "keys": swept_columns(loader, arms["arm"]),
            "t": [None, *map(t_quantile, range(1, max(QUANTILES, most) + 1))],
        }
    )


def _run_id(run_id: str, seed: int) -> tuple[str, str | None]:
    """Name and hash of a run's id, which with the seed are the whole of it; of an id of another form, (id, None)."""
    found = _RUN_ID.fullmatch(run_id)
    return (found["name"], found["hash"]) if found and found["seed"] == str(seed) else (run_id, None)


def _why(failure: dict[str, Any] | None, foreign: bool) -> str:
    """The kinds of a failure; of another loop's run only those that are known."""
    return ", ".join(kind for kind in (failure or {"kinds": ()})["kinds"] if kind != "unknown" or not foreign)


def _column(values: pd.Series) -> Any:
    if not pd.api.types.is_numeric_dtype(values):
        return _words(values.tolist())
    return [None if pd.isna(value) or not np.isfinite(value) else value for value in values.tolist()]


def _words(values: Sequence[str | None]) -> dict[str, Any]:
    place = {word: index for index, word in enumerate(dict.fromkeys(word for word in values if word is not None))}
    return {"words": list(place), "codes": [None if value is None else place[value] for value in values]}


def _suggested(loader: ExperimentDataLoader, arms: pd.DataFrame) -> list[dict[str, Any]]:
    """Comparisons to begin with: the formats of one setting and scope, the best first, against its unquantized arm; and
    the best arms of each project of other loops."""
    rows = loader.runs[(loader.runs["role"] == "report") & ~loader.runs["foreign"].astype(bool)]
    losses = arms.set_index("arm")["val_loss"].dropna()
    free = rows[unquantized(rows)].drop_duplicates("setting").set_index("setting")["arm"]
    found = []
    for (setting, scope), runs in rows[~unquantized(rows)].groupby(["setting", "scope"], sort=True):
        known = losses.reindex(runs["arm"].unique()).dropna().sort_values(kind="stable")
        if setting in free.index and len(known) > 1:
            label = f"{scope}: {len(known)} formats, {runs['rule'].iloc[0]}, {runs['max_steps'].iloc[0]} steps"
            found.append((-len(runs), label, known.index.tolist(), free[setting]))
    if loader.runs["foreign"].any():
        found += _best_of_projects(loader, losses)
    first = sorted(found, key=lambda each: each[:2])[:SUGGESTED]
    return [{"label": label, "arms": chosen, "baseline": baseline} for _, label, chosen, baseline in first]


def ends(loader: ExperimentDataLoader) -> list[float]:
    """What each run ended with, of the metric by which they are compared; NaN where it did not finish."""
    runs = loader.memo(outcomes).runs["value"] if loader.runs["foreign"].any() else loader.runs["final_val_loss"]
    return [float(value) for value in runs.tolist()]


def swept_columns(loader: ExperimentDataLoader, arms: Iterable[str]) -> dict[str, list[str | None]]:
    """The keys that name other loops' arms, but for those that have a column anyway, and what each arm states."""
    foreign = set(loader.runs.loc[loader.runs["foreign"].astype(bool), "arm"])
    configs = {arm: loader.config(arm) if arm in foreign else None for arm in arms}
    differ = naming({arm: config for arm, config in configs.items() if config is not None}, SWEPT)
    keys = dict.fromkeys(key for own in differ.values() for key in own if key not in _HAVE_COLUMNS)
    stated = [{} if config is None else values_of(config) for config in configs.values()]
    return {visible(key): [shown(own[key]) if key in own else None for own in stated] for key in [*keys][:SWEPT]}


def shown(value: Any) -> str:
    """A value of a config, as a cell shows it."""
    return cut(visible(scalar(value)), 40)


def _best_of_projects(loader: ExperimentDataLoader, losses: pd.Series) -> Iterator[tuple[int, str, list[str], str]]:
    outcome = loader.memo(outcomes)
    foreign = set(loader.runs.loc[loader.runs["foreign"].astype(bool), "arm"])
    ranked = losses[losses.index.isin(foreign)].sort_values(ascending=outcome.sign > 0, kind="stable")
    for project, runs in outcome.runs[outcome.runs["arm"].isin(ranked.index)].groupby("project", sort=True):
        own = set(runs["arm"])
        best = [str(arm) for arm in ranked.index if arm in own]
        if len(best) > 1:
            few = f"the {BEST} best of {len(best)}" if len(best) > BEST else f"all {len(best)}"
            paired = runs["seed"].notna().any()
            label = f"{project}: {few} arms by {outcome.metric}{', against the best' if paired else ''}"
            yield -len(runs), label, best[:BEST], best[0] if paired else "none"


def arm_json(
    loader: ExperimentDataLoader,
    arm: str,
    runs: pd.DataFrame,
    baseline: str | None,
    last: pd.DataFrame,
    layers: Mapping[str, Any] | None = None,
    measure: Measure | None = OWN,
) -> bytes:
    """One arm for scripts: {arm, baseline, style, data, config, health, t, metric, metrics, runs, final, layers}.

    ``metric`` is the `measure`, ``metrics`` has name and title of all that have curves, ``runs`` are the curves
    (`runs_value`), ``style`` that of its format (null: not stated), ``config`` its flat keys as YAML text, ``health``
    what `health_by_type` finds in `last`, ``t`` as in `table_json` for the pairs that its runs can form, ``final`` of
    each run what it ended with, with all its digits, null where it did not finish, ``layers`` what is drawn of them
    on the arm's page. Controls in the texts are spelled out (`visible`), since the scripts show them as they are.
    """
    value = {
        "arm": arm,
        "baseline": baseline,
        "style": None if runs["format"].iloc[0] == NOT_STATED else format_style(runs["format"].iloc[0]).value,
        "data": str(runs["data"].iloc[0])[:12],
        "config": {visible(key): visible(text) for key, text in config_lines(loader.config(arm)).items()},
        "health": [[*map(visible, keys), value] for *keys, value in health_by_type(last)],
    }
    metrics = metrics_of_arm(loader, runs, measure)
    ends = pd.Series([last_value(loader.records[run_id], measure) for run_id in runs["run_id"]], dtype=float)
    found = plain(value) | {
        "runs": runs_value(loader, runs, metrics),
        "final": _column(ends),
        "metrics": [*map(list, metrics.items())],
    }
    found["metric"] = measure and {**measure._asdict(), "name": metric_key(measure.name)}
    found["t"] = [None, *map(t_quantile, range(1, len(runs)))]
    return compact(found | ({"layers": layers} if layers else {}))


def run_value(record: RunRecord) -> dict[str, Any]:
    """One run as it was recorded, for JSON: its description, and its history column by column."""
    return {"run": plain(record.run), "history": history_value(record.history)}


def downloads(files: Mapping[str, bytes]) -> tuple[Download, ...]:
    """Files beside a page that its scripts read, and that it does not list."""
    return tuple(Download(name, content, listed=False) for name, content in files.items())


def averaged(loader: ExperimentDataLoader, runs: pd.DataFrame) -> list[str]:
    """The runs of an arm whose looks its health is the mean of."""
    statuses = dict(zip(runs["run_id"].tolist(), runs["status"].tolist(), strict=True))
    looked = [run_id for run_id in statuses if loader.records[run_id].looked]
    return [run_id for run_id in looked if statuses[run_id] == "finished"] or looked


def health_by_type(last: pd.DataFrame) -> list[list[Any]]:
    """Rows [statistic, operand, layer type, value] of a last look: what rounding lost in each kind of layer.

    ``overflow``, ``underflow`` (fractions of the nonzero elements) and ``sqnr_db`` are means over the layers of a type
    and over the runs; ``stall_ratio`` is ``1 - flips / updates`` summed over both. Values that are not finite (an SQNR
    where nothing was lost) take no part.
    """
    last = last[~is_histogram(last)]
    lost, sums = dict[tuple[str, str, str], list[float]](), dict[tuple[str, str], float]()
    names = ("statistic", "operand", "layer_type", "value", "n")
    for statistic, operand, kind, value, n in zip(*(last[name].tolist() for name in names), strict=True):
        if statistic in ("overflow", "underflow", "sqnr_db") and math.isfinite(value):
            lost.setdefault((statistic, operand, kind), []).append(value)
        elif statistic in ("flips", "updates"):
            sums[statistic, kind] = sums.get((statistic, kind), 0.0) + value * n
    rows: list[list[Any]] = [[*keys, math.fsum(values) / len(values)] for keys, values in lost.items()]
    for (statistic, kind), updates in sums.items():
        if statistic == "updates" and updates > 0:
            rows.append(["stall_ratio", "update", kind, 1.0 - sums.get(("flips", kind), 0.0) / updates])
    return rows


def config_lines(config: ExperimentConfig) -> dict[str, str]:
    """Every key of an arm's config, dotted, with its value as YAML; of a foreign run also its loop's own keys."""
    return {key: scalar(value) for key, value in (stated(config) | (config.foreign or {})).items()}


def stated(config: ExperimentConfig) -> dict[str, Any]:
    """The keys of an arm's config that are AltGrad's own, dotted."""
    return flat({key: value for key, value in config.arm_identity().items() if key != "foreign"})


def compare_page(loader: ExperimentDataLoader) -> Page:
    """The page on which a reader compares arms; docs/javascripts/runs/compare-page.js fills it."""
    values = {"runs": len(loader.runs), "campaign": has_campaign()}
    return document_page(loader, "compare/index", values, code=__name__)
