"""What was varied in anyone's runs, and what it did to the metric by which they are compared.

A project's arms differ in the keys that `labels.varied` finds. Two arms that differ in one key alone are compared by
the difference of their runs of one seed; where each has a single run without a seed, by these two.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis.labels import site_labels, values_of, varied
from altgrad.analysis.loader import ExperimentDataLoader
from altgrad.analysis.statistics import Estimate, mean_interval
from altgrad.config import scalar
from altgrad.runs import RunRecord
from altgrad.runs.site_names import NO_NAMES, Metric
from altgrad.text import shorten, visible

MOST_KEYS = 12
NOT_METRICS = ("step", "tokens", "seconds", "lr", "epoch", "logged_step")
LOSSES = ("loss", "val_loss", "perplexity")
"""Metrics of which lower is better, whoever logged them."""
ABSENT = "not stated"
"""The value of a key that a run does not state."""


@dataclass(frozen=True)
class Outcomes:
    """The runs of a site with the value of its metric.

    Attributes:
        metric: by which runs are compared; None where no run has logged any.
        about: which way is better, and the unit.
        runs: a row a run: run_id, arm, label, project, seed (NaN where not stated), status, value (NaN where it did not
            finish or has none).
    """

    metric: str | None
    about: Metric
    runs: pd.DataFrame

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return 1 if self.about.better == "lower" else -1


class Effect(NamedTuple):
    """What one value of a key does against the reference value of it, over the settings in which both were run."""

    project: str
    key: str
    reference: str
    value: str
    estimate: Estimate
    settings: int
    paired: bool


def outcomes(loader: ExperimentDataLoader) -> Outcomes:
    """The runs of a site with the last value of the metric by which they are compared."""
    records = list(loader.records.values())
    names = next((record.names for record in records if record.names != NO_NAMES), NO_NAMES)
    metric = names.main(metrics_of(records))
    labels = loader.memo(site_labels)
    rows = [
        {
            "run_id": record.id,
            "arm": record.arm,
            "label": labels[record.arm],
            "project": record.config.study,
            "seed": float(record.config.seed) if record.config.states("seed") else math.nan,
            "status": record.status,
            "value": _last(record, metric),
        }
        for record in records
    ]
    frame = pd.DataFrame(rows, columns=["run_id", "arm", "label", "project", "seed", "status", "value"])
    return Outcomes(metric, names.metric(metric or ""), frame)


def metrics_of(records: Iterable[RunRecord]) -> list[str]:
    """What some runs have logged: the losses first, then what the most of them have, the norm of gradients last."""
    counts = Counter(name for record in records for name in record.history if name not in NOT_METRICS)
    return sorted(counts, key=lambda name: (name not in LOSSES, name == "grad_norm", -counts[name], name))


def _last(record: RunRecord, metric: str | None) -> float:
    if record.status != "finished" or metric is None or metric not in record.history:
        return math.nan
    known = record.history[metric].dropna()
    return float(known.iloc[-1]) if len(known) and np.isfinite(known.iloc[-1]) else math.nan


def varied_keys(loader: ExperimentDataLoader) -> pd.DataFrame:
    """A row a project and key: project, key, values (the most common first), arms (that state it)."""
    rows = []
    arms = _arms(loader)
    for project, keys in varied({arm: loader.config(arm) for arm in arms}, MOST_KEYS).items():
        own = [values for arm, values in arms.items() if loader.config(arm).study == project]
        for key in keys:
            counts = Counter(_text(values[key]) for values in own if key in values)
            values = [value for value, _ in sorted(counts.items(), key=lambda each: (-each[1], _order(each[0])))]
            rows.append({"project": project, "key": key, "values": values, "arms": sum(counts.values())})
    return pd.DataFrame(rows, columns=["project", "key", "values", "arms"])


def effects(loader: ExperimentDataLoader) -> list[Effect]:
    """What each varied key does within each project, by project, key and value."""
    found: list[Effect] = []
    runs = loader.memo(outcomes).runs.dropna(subset=["value"])
    arms = {arm: values for arm, values in _arms(loader).items() if values}
    for project, keys in varied({arm: loader.config(arm) for arm in arms}, MOST_KEYS).items():
        own = {arm: values for arm, values in arms.items() if loader.config(arm).study == project}
        results = {arm: rows for arm, rows in runs.groupby("arm") if arm in own}
        for key in keys:
            found += _of_key(project, key, own, results, loader)
    return found


def _of_key(
    project: str,
    key: str,
    arms: Mapping[str, Mapping[str, Any]],
    results: Mapping[Any, pd.DataFrame],
    loader: ExperimentDataLoader,
) -> Iterable[Effect]:
    settings: dict[Any, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    counts = Counter[str]()
    for arm in results:
        values = arms[arm]
        value = _text(values[key]) if key in values else ABSENT
        rest = frozenset((name, _text(each)) for name, each in values.items() if name != key)
        settings[rest, loader.data_name(arm)][value].append(arm)
    settings = {rest: by_value for rest, by_value in settings.items() if len(by_value) > 1}
    for by_value in settings.values():
        counts.update(list(by_value))
    if not counts:
        return
    reference = min(counts, key=lambda value: (-counts[value], _order(value)))
    for value in sorted(set(counts) - {reference}, key=_order):
        differences, used, paired = list[float](), 0, True
        for by_value in settings.values():
            if reference in by_value and value in by_value:
                pairs, by_seed = _pairs(*(pd.concat([results[a] for a in by_value[v]]) for v in (value, reference)))
                differences += pairs
                used += bool(pairs)
                paired &= by_seed
        if differences:
            yield Effect(project, key, reference, value, mean_interval(differences), used, paired)


def _pairs(own: pd.DataFrame, other: pd.DataFrame) -> tuple[list[float], bool]:
    """Differences of runs of one seed; of single runs without a seed their own, and then False."""
    if own["seed"].isna().any() or other["seed"].isna().any():
        single = len(own) == len(other) == 1
        return ([float(own["value"].iloc[0] - other["value"].iloc[0])] if single else []), False
    one, two = (frame.drop_duplicates("seed").set_index("seed")["value"] for frame in (own, other))
    return [float(each) for each in (one - two).dropna()], True


def interaction(loader: ExperimentDataLoader) -> tuple[str, str, pd.DataFrame] | None:
    """The two keys of a project of whose pairs of values the most were run, and the mean of the metric of each pair.

    Other keys differ within a cell where they differ; None where no two keys have four pairs.
    """
    runs = loader.memo(outcomes).runs.dropna(subset=["value"])
    arms, best = _arms(loader), None
    for project, keys in varied({arm: loader.config(arm) for arm in arms}).items():
        rows = runs[runs["project"] == project]
        for one, two in combinations(keys, 2):
            cells = rows.assign(
                **{side: [_text(arms[arm][key]) if key in arms[arm] else ABSENT for arm in rows["arm"]]
                   for side, key in (("row", one), ("column", two))}
            )  # fmt: skip
            table = cells.pivot_table(index="row", columns="column", values="value", aggfunc="mean")
            count, small = int(table.notna().sum().sum()), max(table.shape, default=0) <= 8 and min(table.shape) > 1
            if small and count >= 4 and (best is None or count > best[0]):
                table = table.loc[sorted(table.index, key=_order), sorted(table.columns, key=_order)]
                best = count, one, two, table
    return best and best[1:]


def _arms(loader: ExperimentDataLoader) -> dict[str, dict[str, Any]]:
    """What the arms of other training loops state."""
    arms = loader.runs.loc[loader.runs["foreign"].astype(bool), "arm"].unique()
    return {arm: values_of(loader.config(arm)) for arm in arms}


def _text(value: Any) -> str:
    return shorten(visible(scalar(value)), 40)


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
