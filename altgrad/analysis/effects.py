"""What was varied in anyone's runs, and what it did to the metric by which they are compared.

A project's arms differ in the keys that `labels.varied` finds. Two arms that differ in one key alone are compared by
the difference of their runs of one seed; where each has a single run without a seed, by these two.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from altgrad.analysis.labels import site_labels, values_of, varied
from altgrad.analysis.loader import ExperimentDataLoader, final_val_loss
from altgrad.analysis.statistics import Estimate, mean_interval
from altgrad.config import scalar
from altgrad.runs import RunRecord
from altgrad.runs.history import LOSSES
from altgrad.text import visible

MOST_KEYS = 12
NOT_METRICS = ("step", "tokens", "seconds", "time", "lr", "epoch", "logged_step")
ABSENT = "not stated"
"""The value of a key that a run does not state."""


class Measure(NamedTuple):
    """A metric as pages show it: its column, what it is called, its unit ("" where none is known), which way is better,
    and with how many digits after the point it is written."""

    name: str
    title: str
    unit: str = ""
    better: str = "lower"
    digits: int = 4

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return 1 if self.better == "lower" else -1

    @property
    def axis(self) -> str:
        """Its name with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


OWN = Measure("val_loss", "validation loss", "nats per character")
"""What AltGrad's own runs are compared by."""


@dataclass(frozen=True)
class Outcomes:
    """The runs of a site with the value of the metric by which they are compared.

    Attributes:
        measure: that metric; None where no run has logged any.
        runs: a row a run: run_id, arm, label, project, seed (NaN where not stated), status, ending, value (NaN where it
            did not finish or has none).
    """

    measure: Measure | None
    runs: pd.DataFrame

    @property
    def metric(self) -> str | None:
        """What the metric is called."""
        return self.measure and self.measure.title

    @property
    def sign(self) -> int:
        """1 where lower is better, -1 where higher is."""
        return self.measure.sign if self.measure else 1


class Turn(NamedTuple):
    """The one key whose values separate the settings with a difference below zero from those above it."""

    key: str
    below: list[str]
    above: list[str]


class Effect(NamedTuple):
    """What one value of a key does against the reference value of it, over the settings in which both were run.

    `estimate` is of the means of the settings where there are several, each counted once, else of the pairs of the one:
    pairs of one setting share what is particular to it, and are not independent. `smallest` and `largest` are the means
    of the settings at both ends, NaN of one setting; `seeds` is 0 where none are stated.
    """

    project: str
    key: str
    reference: str
    value: str
    estimate: Estimate
    pairs: int
    seeds: int
    settings: int
    smallest: float
    largest: float
    turn: Turn | None
    paired: bool


class Untold(NamedTuple):
    """A value of a key of which no difference is known.

    `always` has the other keys whose values here no other value of `key` was run with; `runs` is how many have a
    result; `arms` are the varied keys without those of `always`.
    """

    project: str
    key: str
    value: str
    runs: int
    always: dict[str, list[str]]
    arms: list[str]


def outcomes(loader: ExperimentDataLoader) -> Outcomes:
    """The runs of a site with the last value of the metric by which they are compared."""
    metric = loader.memo(measure_of)
    labels = loader.memo(site_labels)
    runs = loader.runs
    records = [loader.records[run_id] for run_id in runs["run_id"]]
    frame = pd.DataFrame(
        {
            "run_id": runs["run_id"],
            "arm": runs["arm"],
            "label": [labels[arm] for arm in runs["arm"]],
            "project": runs["study"],
            "seed": runs["seed"].astype("float64"),
            "status": runs["status"],
            "ending": runs["ending"],
            "value": [last_value(record, metric) for record in records],
        }
    )
    return Outcomes(metric, frame)


def measure_of(loader: ExperimentDataLoader, arm: str | None = None) -> Measure | None:
    """The metric by which the runs of a site are compared, or that an arm's page opens with where it has not that one.

    It is the site's own (of a site what only summaries have too), else the validation, test or training loss, else the
    first; None where nothing was logged.
    """
    if arm is not None and loader.config(arm).foreign is None:
        return OWN
    own = list(loader.records.values()) if arm is None else loader.records_of(arm)
    if not own or any(record.config.foreign is None for record in own):
        return OWN
    names = own[0].names
    ended = [record for record in own if record.status == "finished"]
    there = metrics_of(ended, ends=arm is None) or metrics_of(own, ends=arm is None)
    site = arm and loader.memo(measure_of)
    name = site.name if site and site.name in there else names.main(there)
    if name is None:
        return None
    about = names.metric(name)
    ends = [abs(value) for record in own if math.isfinite(value := last_value(record, Measure(name, name)))]
    return Measure(name, visible(name), visible(about.unit), about.better, _digits(max(ends, default=1.0)))


def _digits(largest: float) -> int:
    """Digits after the point that show five of a number: four for those of usual size."""
    if largest == 0 or 0.05 <= largest < 1000:
        return 4
    return min(12, max(0, 4 - math.ceil(math.log10(largest))))


def metrics_of(records: Iterable[RunRecord], but: Collection[str] = NOT_METRICS, ends: bool = False) -> list[str]:
    """What some runs have logged: the losses first, then what the most of them have, the norm of gradients last.

    Args:
        records: the runs.
        but: names that are no metrics.
        ends: with what only their summaries have.
    """
    logged = ([*record.history, *(summary_of(record) if ends else ())] for record in records)
    counts = Counter(name for names in logged for name in names if name not in but)
    return sorted(counts, key=lambda name: (name not in LOSSES, name == "grad_norm", -counts[name], name))


def summary_of(record: RunRecord) -> dict[str, float]:
    """The numbers that only the summary of another loop's run has, by the names that its site gives them."""
    given = record.run.get("summary") if record.config.foreign is not None else None
    numbers = {name: figure_of(value) for name, value in (given or {}).items() if type(value) in (int, float)}
    logged = set(record.history) if numbers else set()
    return {name: numbers[own] for own, name in record.names.columns(numbers).items() if name not in logged}


def figure_of(number: float) -> float:
    """As a float; infinity for an integer beyond it."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def last_value(record: RunRecord, metric: Measure | None) -> float:
    """What a finished run ended with; NaN where it did not finish or has no finite value."""
    if metric == OWN and record.config.foreign is None:
        return final_val_loss(record)
    if record.status != "finished" or metric is None:
        return math.nan
    history = record.history
    if metric.name not in history:
        value = summary_of(record).get(metric.name, math.nan)
        return value if math.isfinite(value) else math.nan
    known = history[metric.name].dropna()
    return float(known.iloc[-1]) if len(known) and np.isfinite(known.iloc[-1]) else math.nan


def varied_keys(loader: ExperimentDataLoader) -> pd.DataFrame:
    """A row a project and key: project, key, values (the most common first; `ABSENT`, where none is stated, last)."""
    rows = []
    arms = _arms(loader)
    for project, keys in varied({arm: loader.config(arm) for arm in arms}, MOST_KEYS).items():
        own = [values for arm, values in arms.items() if loader.config(arm).study == project]
        for key in keys:
            counts = Counter(_value(values, key) for values in own)
            order = sorted(counts.items(), key=lambda each: (each[0] == ABSENT, -each[1], _order(each[0])))
            values = [value for value, _ in order]
            rows.append({"project": project, "key": key, "values": values})
    return pd.DataFrame(rows, columns=["project", "key", "values"])


def effects(loader: ExperimentDataLoader) -> list[Effect]:
    """What each varied key does within each project: by project, the key of the largest difference first, and value."""
    found: list[Effect] = []
    runs = loader.memo(outcomes).runs.dropna(subset=["value"])
    arms = {arm: values for arm, values in _arms(loader).items() if values}
    for project, keys in varied({arm: loader.config(arm) for arm in arms}, MOST_KEYS).items():
        own = {arm: values for arm, values in arms.items() if loader.config(arm).study == project}
        results = {arm: rows for arm, rows in runs.groupby("arm") if arm in own}
        by_key = [[*_of_key(project, key, own, results, loader)] for key in keys]
        for of_key in sorted(by_key, key=lambda own: -max((abs(each.estimate.mean) for each in own), default=0.0)):
            found += of_key
    return found


def strongest(found: Iterable[Effect]) -> list[Effect]:
    """Of each project and key the largest difference, in their order."""
    largest: dict[tuple[str, str], Effect] = {}
    for each in found:
        own = largest.setdefault((each.project, each.key), each)
        if abs(each.estimate.mean) > abs(own.estimate.mean):
            largest[each.project, each.key] = each
    return list(largest.values())


def untold(loader: ExperimentDataLoader) -> list[Untold]:
    """The values of varied keys that no difference is of; of two keys that go together, the one with fewer of them."""
    known = {(each.project, each.key, value) for each in loader.memo(effects) for value in (each.reference, each.value)}
    runs, arms = loader.memo(outcomes).runs.dropna(subset=["value"]), _arms(loader)
    counts, keys, found = Counter(runs["arm"]), varied_keys(loader), list[list[Untold]]()
    for project, key, values in keys.itertuples(index=False):
        others = [other for other in keys.loc[keys["project"] == project, "key"] if other != key]
        own = {arm: arms[arm] for arm in counts if arm in arms and loader.config(arm).study == project}
        rows = []
        stated = {
            other
            for _, other, each in keys[keys["project"] == project].itertuples(index=False)
            if any(value != ABSENT and (project, other, value) not in known for value in each)
        }
        for value in values:
            if (project, key, value) in known:
                continue
            here = [arm for arm, each in own.items() if _value(each, key) == value]
            always = {}
            for other in others:
                with_it = {_value(own[arm], other) for arm in here}
                if with_it.isdisjoint(_value(own[arm], other) for arm in own.keys() - here):
                    always[other] = sorted(with_it, key=_order)
            always = always if here else {}
            if value == ABSENT and always and not stated.isdisjoint((key, *always)):
                continue  # what goes with not saying a key is told of the values of these keys
            left = [other for other in (key, *others) if other not in always]
            rows.append(Untold(project, key, value, sum(counts[arm] for arm in here), always, left))
        found.append(rows)
    said, kept = set[tuple[str, str, str]](), list[Untold]()
    for each in (row for rows in sorted(found, key=len) for row in rows):
        if not each.always or not all((each.project, other, each.key) in said for other in each.always):
            kept.append(each)
            said |= {(each.project, each.key, other) for other in each.always}
    return kept


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
        rest = frozenset((name, _text(each)) for name, each in arms[arm].items() if name != key)
        settings[rest, loader.data_name(arm)][_value(arms[arm], key)].append(arm)
    settings = {rest: by_value for rest, by_value in settings.items() if len(by_value) > 1}
    for by_value in settings.values():
        counts.update(list(by_value))
    if not counts:
        return
    reference = min(counts, key=lambda value: (-counts[value], _order(value)))
    for value in sorted(set(counts) - {reference}, key=_order):
        found, paired = list[tuple[dict[str, str], pd.Series]](), True
        for (rest, _), by_value in settings.items():
            if reference in by_value and value in by_value:
                pairs, by_seed = _pairs(*(pd.concat([results[a] for a in by_value[v]]) for v in (value, reference)))
                found += [(dict(rest), pairs)] if len(pairs) else []
                paired &= by_seed
        if found:
            every = pd.concat([pairs for _, pairs in found])
            means = [(rest, float(pairs.mean())) for rest, pairs in found]
            ends = [mean for _, mean in means]
            reach = (min(ends), max(ends)) if len(ends) > 1 else (math.nan, math.nan)
            estimate, seeds = mean_interval(ends if len(ends) > 1 else every), every.index.dropna().nunique()
            counts_of = (len(every), seeds, len(found))
            yield Effect(project, key, reference, value, estimate, *counts_of, *reach, _turn(means), paired)


def _turn(means: list[tuple[dict[str, str], float]]) -> Turn | None:
    """By which key the sign of the means of settings goes; None where it does not differ, or no or several keys do."""
    below, above = [rest for rest, mean in means if mean < 0], [rest for rest, mean in means if mean > 0]
    found = []
    for key in sorted({key for rest, _ in means for key in rest}) if below and above else ():
        low, high = ({rest.get(key, ABSENT) for rest in side} for side in (below, above))
        if not low & high:
            found.append(Turn(key, sorted(low, key=_order), sorted(high, key=_order)))
    return found[0] if len(found) == 1 else None


def _pairs(own: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.Series, bool]:
    """Differences of runs of one seed, by seed; of single runs without a seed their own, and then False."""
    if own["seed"].isna().any() or other["seed"].isna().any():
        single = len(own) == len(other) == 1
        values = [float(own["value"].iloc[0] - other["value"].iloc[0])] if single else []
        return pd.Series(values, [math.nan] * len(values), dtype=float), False
    one, two = (frame.drop_duplicates("seed").set_index("seed")["value"] for frame in (own, other))
    return (one - two).dropna(), True


def interaction(loader: ExperimentDataLoader) -> tuple[str, str, pd.DataFrame] | None:
    """The two keys of a project of whose pairs of values the most were run, and the mean of the metric of each pair.

    Of several such those between whose cells the mean differs most. Other keys differ within a cell where they differ;
    None where no two keys have four pairs.
    """
    runs = loader.memo(outcomes).runs.dropna(subset=["value"])
    arms, best = _arms(loader), None
    for project, keys in varied({arm: loader.config(arm) for arm in arms}).items():
        rows = runs[runs["project"] == project]
        for one, two in combinations(keys, 2):
            cells = rows.assign(
                **{
                    side: [_value(arms[arm], key) for arm in rows["arm"]]
                    for side, key in (("row", one), ("column", two))
                }
            )
            table = cells.pivot_table(index="row", columns="column", values="value", aggfunc="mean")
            small = max(table.shape, default=0) <= 8 and min(table.shape) > 1
            count = int(table.notna().sum().sum()), float(table.max().max() - table.min().min())
            if small and count[0] >= 4 and (best is None or count > best[0]):
                table = table.loc[sorted(table.index, key=_order), sorted(table.columns, key=_order)]
                best = count, one, two, table
    return best and best[1:]


def _arms(loader: ExperimentDataLoader) -> dict[str, dict[str, Any]]:
    """What the arms of other training loops state."""
    arms = loader.runs.loc[loader.runs["foreign"].astype(bool), "arm"].unique()
    return {arm: values_of(loader.config(arm)) for arm in arms}


def _value(values: Mapping[str, Any], key: str) -> str:
    return _text(values[key]) if key in values else ABSENT


def _text(value: Any) -> str:
    return visible(scalar(value))


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
